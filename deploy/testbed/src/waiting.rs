//! Waiting for a condition.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a test waits for what must happen: far longer than it takes, on a busy machine with real servers.
pub const SOON: Duration = Duration::from_secs(40);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The answer of a condition: `true`, or `Ok` with a value, when it holds.
pub trait Answer {
    /// What a condition that holds gives.
    type Value;

    /// The value, or what the answer was.
    ///
    /// # Errors
    /// The answer of a condition that does not hold, for the failure's message.
    fn holds(self) -> Result<Self::Value, impl Debug>;
}

impl Answer for bool {
    type Value = ();

    fn holds(self) -> Result<(), impl Debug> {
        if self { Ok(()) } else { Err(self) }
    }
}

impl<T, E: Debug> Answer for Result<T, E> {
    type Value = T;

    fn holds(self) -> Result<T, impl Debug> {
        self
    }
}

/// `Ok` if what was found is what was expected, and else what was found.
///
/// # Errors
/// What was found.
pub fn equal<T: PartialEq<U>, U>(found: T, expected: U) -> Result<(), T> {
    if found == expected { Ok(()) } else { Err(found) }
}

/// `Ok` if the text contains the part, and else the text.
///
/// # Errors
/// The text.
pub fn contains(text: String, part: &str) -> Result<(), String> {
    if text.contains(part) { Ok(()) } else { Err(text) }
}

/// Waits until a condition holds, and returns its value.
///
/// # Panics
/// After [`SOON`], with `what` it waited for and the last answer.
pub async fn eventually<A: Answer>(what: &str, look: impl AsyncFnMut() -> A) -> A::Value {
    eventually_within(SOON, what, look).await
}

/// [`eventually`] with another limit.
///
/// # Panics
/// After `limit`, with `what` it waited for and the last answer.
pub async fn eventually_within<A: Answer>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> A,
) -> A::Value {
    let deadline = Instant::now() + limit;
    loop {
        let last = match look().await.holds() {
            Ok(value) => return value,
            Err(last) => format!("{last:?}"),
        };
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}; the last answer: {last}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_gives_its_value() {
        let mut looks = 0;
        let value = eventually("the third look", async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(looks) }
        });
        assert_eq!(value.await, 3);
        eventually("it is so", async || true).await;
    }

    #[tokio::test]
    #[should_panic(expected = "not within 1ms: the answer; the last answer: 41")]
    async fn a_condition_that_stays_false_says_what_it_was_and_the_last_answer() {
        let limit = Duration::from_millis(1);
        eventually_within(limit, "the answer", async || equal(41, 42)).await;
    }
}
