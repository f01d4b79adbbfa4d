//! Refresh tokens against a model: any interleaving of use, repeat, reuse and waiting.

use proptest::prelude::*;

use super::*;
use crate::app::session_store::Rotation;
use crate::domain::session::SessionTimes;
use crate::domain::token::Salt;

/// A step of a scenario.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Present the `n`-th newest issued token (0 is the newest).
    Present(usize),
    /// Present a token that was never issued.
    Forge,
    /// Use the session with an access token.
    Touch,
    /// Wait so many seconds.
    Wait(i64),
    /// Run the pruner.
    Prune,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Present(0)),
        4 => (1..4_usize).prop_map(Step::Present),
        1 => Just(Step::Forge),
        2 => Just(Step::Touch),
        3 => prop_oneof![Just(1), Just(4), Just(9), Just(10), Just(11), Just(40), Just(101)]
            .prop_map(Step::Wait),
        1 => Just(Step::Prune),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The model: the tokens in the order of issue, when each was used, and the times of the session.
struct Model {
    tokens: Vec<RefreshToken>,
    used_at: Vec<Option<i64>>,
    renewed_at: i64,
    over: bool,
}

/// Bounds small enough to be reached in a few dozen steps.
fn policy() -> SessionPolicy {
    SessionPolicy {
        absolute: TimeDelta::seconds(300),
        idle: TimeDelta::seconds(100),
        grace: TimeDelta::seconds(10),
        remembered_tokens: 1_000,
        ..SessionPolicy::default()
    }
}

impl Model {
    /// The expected result of presenting the token at `index` at `now`; the session began at 0.
    fn expect(&self, index: usize, now: i64) -> &'static str {
        let newest = self.tokens.len() - 1;
        if self.over {
            return "unknown";
        }
        if now >= 300 || now - self.renewed_at >= 100 {
            return "expired";
        }
        match self.used_at[index] {
            None => "rotated",
            Some(at) if index + 1 == newest && now - at < 10 => "repeated",
            Some(_) => "reused",
        }
    }
}

/// Runs the steps on a new session and compares every result with the model's.
pub(super) async fn answers_as_the_model_does<S: Ports>(store: &S, member: &str, steps: &[Step]) {
    let policy = policy();
    let hana = sign_up(store, member).await;
    let session = log_in(store, &hana, &policy, at(0)).await;
    let mut now = 0;
    let mut model =
        Model { tokens: vec![session.token], used_at: vec![None], renewed_at: 0, over: false };
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Wait(seconds) => now += seconds,
            Step::Touch => {
                let over = model.over || now >= 300 || now - model.renewed_at >= 100;
                let used = store.touch(&hana.account.id, session.id, &policy, at(now)).await;
                let times = SessionTimes { started_at: at(0), renewed_at: at(now) };
                assert_eq!(used.unwrap(), (!over).then_some(times), "step {n} at {now} s");
                if !over {
                    model.renewed_at = now;
                }
            }
            Step::Prune => {
                store.prune(&policy, at(now)).await.unwrap();
                model.over |=
                    !S::EXPIRES_BY_ITSELF && (now >= 300 || now - model.renewed_at >= 100);
            }
            Step::Forge => {
                let forged = RefreshToken::random().unwrap();
                let answer = sessions::rotate(store, &forged, &policy, at(now)).await;
                assert_eq!(answer, Rotation::Unknown);
            }
            Step::Present(back) => {
                let index = model.tokens.len().saturating_sub(back + 1);
                let expected = model.expect(index, now);
                let token = model.tokens[index].clone();
                let salt = Salt::random().unwrap();
                let next = token.successor(&salt);
                let answer =
                    store.rotate(&token.hash(), &salt, &next.hash(), &policy, at(now)).await;
                let got = match answer.unwrap() {
                    Rotation::Rotated { member, session: of, times } => {
                        assert_eq!((member, of), (hana.account.id.clone(), session.id));
                        assert_eq!((times.started_at, times.renewed_at), (at(0), at(now)));
                        model.used_at[index] = Some(now);
                        model.tokens.push(next);
                        model.used_at.push(None);
                        model.renewed_at = now;
                        "rotated"
                    }
                    Rotation::Repeated { member, session: of, times, salt } => {
                        assert_eq!((member, of), (hana.account.id.clone(), session.id));
                        assert_eq!(times.renewed_at, at(model.renewed_at));
                        let current = model.tokens.last().unwrap();
                        assert_eq!(token.successor(&salt), *current, "the same successor");
                        "repeated"
                    }
                    Rotation::Reused { session: of } => {
                        assert_eq!(of, session.id);
                        assert!(revoked(store, at(now)).await.contains(&session.id));
                        model.over = true;
                        "reused"
                    }
                    Rotation::Expired => "expired",
                    // The pruner or the engine has removed it.
                    Rotation::Unknown if expected == "expired" => "expired",
                    Rotation::Unknown => "unknown",
                };
                assert_eq!(got, expected, "step {n} at {now} s: {step:?}");
            }
        }
        let open = store.account(&hana.account.id, session.id, &policy, at(now)).await.unwrap();
        let over = model.over || now >= 300 || now - model.renewed_at >= 100;
        assert_eq!(open.is_none(), over, "step {n} at {now} s: {step:?}");
    }
}

pub(super) async fn tokens_older_than_the_remembered_are_unknown(store: impl Ports) {
    let policy = SessionPolicy { remembered_tokens: 3, ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let mut tokens = vec![session.token];
    for n in 1..=6 {
        let salt = Salt::random().unwrap();
        let token = tokens.last().unwrap().clone();
        let next = token.successor(&salt);
        store.rotate(&token.hash(), &salt, &next.hash(), &policy, at(n)).await.unwrap();
        tokens.push(next);
    }
    // tokens[6] is current; the three before it are remembered.
    let forgotten = sessions::rotate(&store, &tokens[2], &policy, at(7)).await;
    assert_eq!(forgotten, Rotation::Unknown);
    assert!(is_open(&store, &hana.account.id, session.id, at(7)).await);
    let remembered = sessions::rotate(&store, &tokens[3], &policy, at(7)).await;
    assert_eq!(remembered, Rotation::Reused { session: session.id });
    let current = sessions::rotate(&store, &tokens[6], &policy, at(7)).await;
    assert_eq!(current, Rotation::Unknown, "the family has ended");
}
