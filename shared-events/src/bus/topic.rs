//! Topic patterns, as AMQP's topic exchanges have them.

/// A pattern over routing keys, which are words separated by dots: `*` stands for exactly one word, `#` for zero or
/// more words.
///
/// ```
/// use tourin_shared_events::bus::TopicPattern;
///
/// assert!(TopicPattern::new("user.#").matches("user.delete"));
/// assert!(!TopicPattern::new("tourSpot.*").matches("tourSpot.upsert.late"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern(Vec<Word>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Literal(String),
    One,
    Any,
}

impl TopicPattern {
    /// Parses a pattern. Every text is a valid pattern.
    pub fn new(pattern: &str) -> Self {
        Self(
            pattern
                .split('.')
                .map(|word| match word {
                    "*" => Word::One,
                    "#" => Word::Any,
                    literal => Word::Literal(literal.to_owned()),
                })
                .collect(),
        )
    }

    /// Whether the pattern matches a routing key. Takes time proportional to the product of their lengths.
    pub fn matches(&self, routing_key: &str) -> bool {
        // reachable[i]: the first i words of the pattern match the words read so far.
        let mut reachable = vec![false; self.0.len() + 1];
        reachable[0] = true;
        for i in 0..self.0.len() {
            reachable[i + 1] = reachable[i] && self.0[i] == Word::Any;
        }
        for word in routing_key.split('.') {
            let mut next = vec![false; reachable.len()];
            for (i, expected) in self.0.iter().enumerate() {
                next[i + 1] = match expected {
                    Word::Literal(literal) => reachable[i] && literal == word,
                    Word::One => reachable[i],
                    Word::Any => reachable[i] || reachable[i + 1] || next[i],
                };
            }
            reachable = next;
        }
        reachable[self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_topic_exchange_does() {
        let cases = [
            ("user.viewTourspot", "user.viewTourspot", true),
            ("user.viewTourspot", "user.delete", false),
            ("user.*", "user.delete", true),
            ("user.*", "user", false),
            ("user.*", "user.a.b", false),
            ("#", "user.delete", true),
            ("user.#", "user", true),
            ("user.#", "user.a.b", true),
            ("#.b", "user.a.b", true),
            ("#.b", "b", true),
            ("#.a.*", "a.a.b", true),
            ("#.a.#", "x.b", false),
            ("*.#.c", "a.c", true),
            ("*.#.c", "c", false),
            ("#.#", "a", true),
            ("a.#.#", "a", true),
            ("tour", "tourSpot", false),
        ];
        for (pattern, key, expected) in cases {
            assert_eq!(TopicPattern::new(pattern).matches(key), expected, "{pattern} over {key}");
        }
    }
}
