//! A share of requests, which a route names in percent.

use toml::Spanned;

use crate::policy_fields::FieldError;

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// As a part of 2^64, so that 0 and 100 percent are exact.
    below: u128,
}

impl Portion {
    /// The share that `field` names.
    ///
    /// # Errors
    /// When it is not from 0 to 100.
    pub fn of_percent(field: &str, percent: &Spanned<f64>) -> Result<Self, FieldError> {
        let value = *percent.get_ref();
        if !(0.0..=100.0).contains(&value) {
            let at = percent.span().start;
            return Err(FieldError::new(at, field, value, "from 0 to 100"));
        }
        Ok(Self { below: (value / 100.0 * 2_f64.powi(64)) as u128 })
    }

    /// Whether a request that stands at this point of 2^64 is in the share.
    pub fn includes(self, point: u64) -> bool {
        u128::from(point) < self.below
    }

    /// Draws whether a request is in the share.
    pub fn draw(self) -> bool {
        self.includes(rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portion(percent: f64) -> Portion {
        Portion::of_percent("canary.percent", &Spanned::new(0..1, percent)).unwrap()
    }

    #[test]
    fn the_ends_are_exact_and_the_middle_is_the_middle() {
        assert!(!portion(0.0).includes(0) && portion(100.0).includes(u64::MAX));
        assert!(portion(50.0).includes(u64::MAX / 2) && !portion(50.0).includes(u64::MAX / 2 + 1));
        let drawn = (0..10_000).filter(|_| portion(20.0).draw()).count();
        // Eight standard deviations of a binomial distribution.
        assert!((1_680..=2_320).contains(&drawn), "{drawn}");
    }

    #[test]
    fn a_share_out_of_bounds_is_named() {
        for percent in [-1.0, 100.5, f64::NAN] {
            let error = Portion::of_percent("mirror.percent", &Spanned::new(7..9, percent));
            let error = error.unwrap_err();
            assert_eq!(error.at, 7);
            assert!(error.reason.starts_with("mirror.percent = "), "{error:?}");
        }
    }
}
