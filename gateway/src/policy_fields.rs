//! The fields of a route's policies, and what is wrong with one.

use std::fmt::Display;
use std::ops::RangeInclusive;

use toml::Spanned;

/// A field with a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where the value stands, in bytes from the table's beginning.
    pub at: usize,
    /// The field, its value and what is allowed.
    pub reason: String,
}

impl FieldError {
    /// The error of `field`, whose value stands `at` this byte.
    pub fn new(at: usize, field: &str, value: impl Display, expected: impl Display) -> Self {
        Self { at, reason: format!("{field} = {value}: {expected}") }
    }
}

/// The number of `field`, which must be in `allowed`; `None` if it is not given.
///
/// # Errors
/// When it is outside of `allowed`.
pub fn number(
    field: &str,
    value: Option<&Spanned<u64>>,
    allowed: RangeInclusive<u64>,
) -> Result<Option<u64>, FieldError> {
    let Some(value) = value else { return Ok(None) };
    let number = *value.get_ref();
    if allowed.contains(&number) {
        return Ok(Some(number));
    }
    let expected = format!("from {} to {}", allowed.start(), allowed.end());
    Err(FieldError::new(value.span().start, field, number, expected))
}
