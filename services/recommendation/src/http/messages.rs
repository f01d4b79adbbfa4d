//! The messages of this service, besides those of every service.

tourin_chassis::messages! {
    pub(super) fn temporarily_unavailable() {
        en: "recommendations cannot be made at the moment; try again",
        ko: "지금은 추천을 제공할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(super) fn no_such_spot() {
        en: "there is no such tour spot",
        ko: "해당 관광지를 찾을 수 없습니다.",
    }
    pub(super) fn invalid_k(max: usize) {
        en: "k must be one whole number from 0 to {max}",
        ko: "k 값은 0부터 {max}까지의 정수 하나여야 합니다.",
    }
}
