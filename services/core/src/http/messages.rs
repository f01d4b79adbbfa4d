//! What a member may read when a call fails, besides what every service answers with.

tourin_chassis::messages! {
    // The service itself.
    pub(crate) fn starting() {
        en: "the service is starting; try again",
        ko: "서비스를 시작하는 중입니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn stopping() {
        en: "the service is stopping; try again",
        ko: "서비스를 종료하는 중입니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(super) fn store_unreachable() {
        en: "the store cannot be reached; try again",
        ko: "지금은 데이터를 읽거나 저장할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }

    // Accounts and sessions.
    pub(super) fn invalid_id(min: usize, max: usize) {
        en: "`id` must be {min} to {max} letters and digits (a-z, A-Z, 0-9), beginning with a \
             letter, and not \"anonymous\"",
        ko: "아이디(id)는 영문자로 시작하는 {min}~{max}자의 영문자와 숫자여야 하며, anonymous는 쓸 수 \
             없습니다.",
    }
    pub(super) fn invalid_name(min: usize, max: usize) {
        en: "`name` must be {min} to {max} characters: letters of any script, spaces, and ' ’ - . or \
             ·, with at least one letter",
        ko: "이름(name)은 {min}~{max}자여야 하며, 문자와 공백과 ' ’ - . · 기호만 쓸 수 있고 문자를 하나 이상 \
             포함해야 합니다.",
    }
    pub(super) fn invalid_email(max: usize) {
        en: "`email` must be an email address such as hana@example.com, of at most {max} characters",
        ko: "이메일(email)은 hana@example.com과 같은 형식이어야 하며 {max}자를 넘을 수 없습니다.",
    }
    pub(super) fn invalid_password(field: &str, min: usize, max: usize, symbols: &str) {
        en: "`{field}` must be {min} to {max} characters with at least one letter (a-z, A-Z), one \
             digit and one of {symbols}",
        ko: "비밀번호({field})는 {min}~{max}자여야 하며, 영문자와 숫자와 특수 문자({symbols})를 각각 하나 \
             이상 포함해야 합니다.",
    }
    pub(super) fn common_password(field: &str) {
        en: "`{field}` is one of the most common passwords, which attackers try first; choose another \
             one",
        ko: "비밀번호({field})는 흔히 쓰여 쉽게 추측되는 비밀번호입니다. 다른 비밀번호를 선택해 주십시오.",
    }
    pub(super) fn wrong_password() {
        en: "`password` is wrong",
        ko: "비밀번호(password)가 맞지 않습니다.",
    }
    pub(super) fn password_needed() {
        en: "`password` is missing: this change needs the account's password",
        ko: "이 변경에는 계정의 비밀번호(password)가 필요합니다.",
    }
    pub(super) fn id_is_taken() {
        en: "the id is taken; choose another one",
        ko: "이미 사용 중인 아이디입니다. 다른 아이디를 선택해 주십시오.",
    }
    pub(super) fn wrong_credentials() {
        en: "the id or the password is wrong",
        ko: "아이디 또는 비밀번호가 맞지 않습니다.",
    }
    pub(super) fn wrong_old_password() {
        en: "`oldPassword` is wrong",
        ko: "기존 비밀번호(oldPassword)가 맞지 않습니다.",
    }
    pub(super) fn too_many_attempts(seconds: u64) {
        en: "too many failed attempts; try again in {seconds} s",
        ko: "실패한 시도가 너무 많습니다. {seconds}초 뒤에 다시 시도해 주십시오.",
    }
    pub(super) fn too_many_passwords_at_once() {
        en: "too many passwords are being checked; try again",
        ko: "지금은 비밀번호를 확인하는 요청이 너무 많습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(super) fn refresh_token_refused() {
        en: "the refresh token is unknown, used, expired or revoked; log in again",
        ko: "갱신 토큰을 쓸 수 없습니다. 다시 로그인해 주십시오.",
    }
    pub(super) fn session_has_ended() {
        en: "the session has ended; log in again",
        ko: "세션이 종료되었습니다. 다시 로그인해 주십시오.",
    }
    pub(super) fn account_is_gone() {
        en: "the account of this session does not exist any more",
        ko: "이 세션의 계정은 더 이상 존재하지 않습니다.",
    }

    // Lists.
    pub(super) fn invalid_page_number(max: u64) {
        en: "pageNo must be a whole number from 1 to {max}",
        ko: "pageNo 값은 1부터 {max}까지의 정수여야 합니다.",
    }
    pub(super) fn invalid_page_size(max: u32) {
        en: "pageSize must be a whole number from 1 to {max}",
        ko: "pageSize 값은 1부터 {max}까지의 정수여야 합니다.",
    }
    pub(super) fn query_too_long(max: usize) {
        en: "query must have at most {max} characters",
        ko: "query 값은 {max}자를 넘을 수 없습니다.",
    }
    pub(super) fn unknown_tag(known: &str) {
        en: "tags must be among {known}",
        ko: "tags 값은 다음 중 하나여야 합니다: {known}",
    }
    pub(super) fn unknown_sort() {
        en: "sort must be name-asc or name-desc",
        ko: "sort 값은 name-asc 또는 name-desc여야 합니다.",
    }
    pub(super) fn unknown_filter() {
        en: "customFilters knows only bookmarked (or by its old name, bookmark)",
        ko: "customFilters에는 bookmarked(예전 이름은 bookmark)만 쓸 수 있습니다.",
    }
    pub(super) fn filter_needs_session() {
        en: "customFilters=bookmarked needs a session: log in first",
        ko: "북마크한 관광지만 보려면 먼저 로그인해 주십시오.",
    }

    // The map.
    pub(super) fn missing_edge(name: &str) {
        en: "{name} is missing: the map needs its edges",
        ko: "{name} 값이 없습니다. 지도의 네 경계를 모두 보내 주십시오.",
    }
    pub(super) fn invalid_latitude() {
        en: "minLat and maxLat must be numbers from -90 to 90",
        ko: "minLat, maxLat 값은 -90부터 90까지의 숫자여야 합니다.",
    }
    pub(super) fn invalid_longitude() {
        en: "minLng and maxLng must be numbers from -180 to 180",
        ko: "minLng, maxLng 값은 -180부터 180까지의 숫자여야 합니다.",
    }
    pub(super) fn latitudes_out_of_order() {
        en: "minLat must not be greater than maxLat",
        ko: "minLat 값은 maxLat 값보다 클 수 없습니다.",
    }
    pub(super) fn longitudes_out_of_order() {
        en: "minLng must not be greater than maxLng; ask for two boxes to cross the 180th meridian",
        ko: "minLng 값은 maxLng 값보다 클 수 없습니다. 경도 180도를 넘는 지역은 둘로 나누어 요청해 주십시오.",
    }

    // Spots, members, bookmarks, reviews.
    pub(super) fn no_such_spot() {
        en: "no such tour spot",
        ko: "해당 관광지를 찾을 수 없습니다.",
    }
    pub(super) fn no_such_member() {
        en: "no such member",
        ko: "해당 회원을 찾을 수 없습니다.",
    }
    pub(super) fn no_such_bookmark() {
        en: "no such bookmark",
        ko: "해당 북마크를 찾을 수 없습니다.",
    }
    pub(super) fn no_such_review() {
        en: "no such review",
        ko: "해당 리뷰를 찾을 수 없습니다.",
    }
    pub(super) fn another_members_bookmarks() {
        en: "these are another member's bookmarks",
        ko: "다른 회원의 북마크는 바꿀 수 없습니다.",
    }
    pub(super) fn another_members_review() {
        en: "another member wrote this review",
        ko: "다른 회원이 쓴 리뷰는 지울 수 없습니다.",
    }
    pub(super) fn user_id_is_not_the_sessions() {
        en: "userId is not the member of this session",
        ko: "userId 값이 로그인한 회원의 아이디와 다릅니다.",
    }
    pub(super) fn invalid_content(max: usize) {
        en: "content must have 1 to {max} characters, at least one of them visible",
        ko: "content 값은 1자 이상 {max}자 이하여야 하며, 보이는 문자를 하나 이상 포함해야 합니다.",
    }
    pub(super) fn too_many_reviews_at_once(max: usize) {
        en: "at most {max} tourSpotReviewIds at once",
        ko: "tourSpotReviewIds에는 한 번에 {max}개까지만 보낼 수 있습니다.",
    }
    pub(super) fn invalid_review_id() {
        en: "tourSpotReviewIds must be ids of reviews: digits without sign or leading zeros",
        ko: "tourSpotReviewIds에는 리뷰 ID를 부호나 앞자리 0 없이 숫자로만 보내 주십시오.",
    }
}
