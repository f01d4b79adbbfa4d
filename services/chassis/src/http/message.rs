//! Messages for people, in every language of Tourin.
//!
//! Each crate has one `messages` module, made by [`messages!`](crate::messages). A message that
//! lacks a language or uses an undeclared argument does not compile, and neither does a plain
//! string in place of a message.

use std::borrow::Cow;
use std::fmt;

use http::header::ACCEPT_LANGUAGE;
use http::{HeaderMap, HeaderValue};

use super::fields;

/// A language of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The default.
    English,
    /// For clients whose `Accept-Language` prefers it.
    Korean,
}

impl Language {
    /// The language that a request's `Accept-Language` prefers (RFC 9110, 12.5.4). The region is
    /// ignored: `ko-KR` is `ko`. `*` stands for the languages that are not named.
    pub fn preferred(headers: &HeaderMap) -> Self {
        let ranges: Vec<_> = fields::weighted(headers, &ACCEPT_LANGUAGE).collect();
        let (korean, korean_at) = weigh("ko", &ranges);
        let (english, english_at) = weigh("en", &ranges);
        let first = korean == english && korean_at < english_at;
        if korean > 0 && (korean > english || first) { Self::Korean } else { Self::English }
    }

    /// The value for `Content-Language`.
    pub const fn tag(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::English => "en",
            Self::Korean => "ko",
        })
    }
}

/// The weight of a language in thousandths, and its index in the list. Of two equal weights the
/// first is preferred, and a named language before one that matches `*`.
fn weigh(language: &str, ranges: &[(&[u8], u32)]) -> (u32, usize) {
    let named = ranges
        .iter()
        .enumerate()
        .filter(|(_, (range, _))| {
            let name = range.split(|byte| b"-_".contains(byte)).next().unwrap_or_default();
            name.eq_ignore_ascii_case(language.as_bytes())
        })
        .map(|(at, (_, weight))| (*weight, at))
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    let any = || ranges.iter().find(|(range, _)| *range == b"*").map(|(_, weight)| *weight);
    named.unwrap_or_else(|| (any().unwrap_or(0), usize::MAX))
}

/// A text for people, in every [`Language`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    english: Cow<'static, str>,
    korean: Option<Cow<'static, str>>,
}

impl Message {
    /// A message in both languages, for [`messages!`](crate::messages).
    #[doc(hidden)]
    pub fn in_both_languages(english: fmt::Arguments<'_>, korean: fmt::Arguments<'_>) -> Self {
        Self { english: written(english), korean: Some(written(korean)) }
    }

    /// English only, for calls of operators and of other services.
    pub fn for_operators(english: impl Into<Cow<'static, str>>) -> Self {
        Self { english: english.into(), korean: None }
    }

    /// Joins several messages into one, in order.
    pub fn all(messages: &[Self]) -> Self {
        let join = |language, separator: &str| {
            let texts: Vec<_> = messages.iter().map(|message| message.text(language)).collect();
            Cow::Owned(texts.join(separator))
        };
        // English messages are clauses, Korean messages are sentences.
        Self { english: join(Language::English, "; "), korean: Some(join(Language::Korean, " ")) }
    }

    /// The language of [`text`](Self::text) for a reader who wants `wanted`.
    pub fn language(&self, wanted: Language) -> Language {
        if self.korean.is_some() { wanted } else { Language::English }
    }

    /// The text in the wanted language, or in English if there is no translation.
    pub fn text(&self, wanted: Language) -> &str {
        match (wanted, &self.korean) {
            (Language::Korean, Some(korean)) => korean,
            _ => &self.english,
        }
    }

    /// Whether the message has a translation.
    pub fn is_translated(&self) -> bool {
        self.korean.is_some()
    }
}

fn written(text: fmt::Arguments<'_>) -> Cow<'static, str> {
    text.as_str().map_or_else(|| Cow::Owned(fmt::format(text)), Cow::Borrowed)
}

/// The English text, for the log.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.english)
    }
}

/// Declares the messages of a crate. Each becomes a function from its arguments to a
/// [`Message`](crate::http::Message). A generated test compares the languages.
///
/// ```
/// # mod messages {
/// tourin_chassis::messages! {
///     pub fn too_long(field: &str, limit: usize) {
///         en: "{field} must have at most {limit} characters",
///         ko: "{field} 값은 {limit}자를 넘을 수 없습니다.",
///     }
/// }
/// # }
/// # use tourin_chassis::http::Language::{English, Korean};
/// let message = messages::too_long("content", 500);
/// assert_eq!(message.text(English), "content must have at most 500 characters");
/// assert_eq!(message.text(Korean), "content 값은 500자를 넘을 수 없습니다.");
/// ```
///
/// English messages are clauses without a full stop, so that several can be joined. Korean messages
/// are polite (`-ㅂ니다`, `-십시오`) and complete sentences. A particle whose form depends on the
/// sound before it never follows an argument.
#[macro_export]
macro_rules! messages {
    ($(
        $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) {
            en: $english:literal,
            ko: $korean:literal $(,)?
        }
    )*) => {
        $(
            #[doc = $english]
            $visibility fn $name($($argument: $kind),*) -> $crate::http::Message {
                $crate::http::Message::in_both_languages(
                    ::core::format_args!($english),
                    ::core::format_args!($korean),
                )
            }
        )*

        #[cfg(test)]
        mod catalogue {
            #[test]
            fn the_languages_say_the_same() {
                $(
                    $crate::http::check_message(
                        stringify!($name),
                        &[$(stringify!($argument)),*],
                        [$english, $korean],
                    );
                )*
            }
        }
    };
}

/// Checks one message against the rules of [`messages!`](crate::messages).
///
/// # Panics
/// When the languages use different arguments, or break a rule.
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub fn check_message(name: &str, arguments: &[&str], [english, korean]: [&str; 2]) {
    use std::collections::BTreeSet;

    let used = |text: &str| -> BTreeSet<String> {
        let parts = text.split('{').skip(1).filter_map(|part| part.split('}').next());
        parts.map(str::to_owned).collect()
    };
    let declared: BTreeSet<String> = arguments.iter().copied().map(str::to_owned).collect();
    assert_eq!(used(english), declared, "{name} in English");
    assert_eq!(used(korean), declared, "{name} in Korean");

    assert!(!english.ends_with('.'), "{name} in English is a clause");
    let polite = ["니다.", "십시오."].iter().any(|end| korean.ends_with(end))
        || (korean.contains("니다: ") && korean.ends_with('}'));
    assert!(polite, "{name} in Korean is a polite sentence: {korean}");
    let particles = ["은", "는", "이", "가", "을", "를", "과", "와", "으로", "로", "이어", "여야"];
    for after in korean.split('}').skip(1) {
        let word = after.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        assert!(!particles.contains(&word), "{name} in Korean: a particle after an argument");
    }
    assert!(!korean.contains("(를)") && !korean.contains("(는)"), "{name}: both particles");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn korean_is_for_those_who_prefer_it() {
        for (lines, korean) in [
            (&[][..], false),
            (&[""], false),
            (&["ko"], true),
            (&["KO-kr"], true),
            (&["ko_KR"], true),
            (&["ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7"], true),
            (&["ko-KR,en;q=0.9,ko;q=0.8"], true),
            (&["en-US,en;q=0.9,ko;q=0.8"], false),
            (&["en;q=0.8, ko ; q = 0.9"], true),
            (&["ko,en"], true),
            (&["en,ko"], false),
            (&["fr-FR,fr;q=0.9,ko;q=0.1"], true),
            (&["fr-FR,fr"], false),
            (&["*"], false),
            (&["*, ko;q=0.5"], false),
            (&["*;q=0.5, ko"], true),
            (&["*, en"], false),
            (&["*, ko"], true),
            (&["*, en;q=0"], true),
            (&["ko;q=0"], false),
            (&["ko;q=0, *"], false),
            (&["ko;q=0, en;q=0"], false),
            (&["ko;q=0.000,ko-KR;q=0.001"], true),
            (&["en;q=0.5", "ko"], true),
            (&["en", "ko"], false),
            // An invalid element does not affect the others.
            (&["en;q=many,ko;q=0.1"], true),
            (&["ko;q=2,en;q=0.1"], false),
            (&["ko;q=NaN"], false),
            (&["ko;level=1"], true),
            (&[",,;q=1, ko"], true),
            (&["kok"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT_LANGUAGE, HeaderValue::from_static(line));
            }
            let expected = if korean { Language::Korean } else { Language::English };
            assert_eq!(Language::preferred(&headers), expected, "{lines:?}");
        }
        let bytes = HeaderValue::from_bytes(b"\xff\xfe, ko").unwrap();
        let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, bytes)]);
        assert_eq!(Language::preferred(&headers), Language::Korean);
    }

    #[test]
    fn several_become_one_in_each_language() {
        let two = Message::all(&[
            Message::in_both_languages(
                format_args!("a is missing"),
                format_args!("a 값이 없습니다."),
            ),
            Message::in_both_languages(
                format_args!("b is missing"),
                format_args!("b 값이 없습니다."),
            ),
        ]);
        assert_eq!(two.text(Language::English), "a is missing; b is missing");
        assert_eq!(two.text(Language::Korean), "a 값이 없습니다. b 값이 없습니다.");
    }

    #[test]
    fn operators_read_english() {
        let message = Message::for_operators("no filter is set");
        assert_eq!(message.language(Language::Korean), Language::English);
        assert_eq!(message.text(Language::Korean), "no filter is set");
    }
}
