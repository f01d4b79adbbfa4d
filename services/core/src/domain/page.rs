//! Pages of a list, and requests for them.

use std::fmt;

/// Items on a page by default.
pub const DEFAULT_PAGE_SIZE: u32 = 10;
/// Most items on a page.
pub const MAX_PAGE_SIZE: u32 = 100;

/// Greatest page number: the greatest signed 64-bit number.
pub const MAX_PAGE_NUMBER: u64 = i64::MAX as u64;

/// The number of a page, from 1, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    number: u64,
    size: u32,
}

/// Why a page request is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPage {
    /// The page's number is 0 or over [`MAX_PAGE_NUMBER`].
    #[error("pageNo must be a whole number from 1 to {MAX_PAGE_NUMBER}")]
    Number,
    /// The page's size is 0 or over [`MAX_PAGE_SIZE`].
    #[error("pageSize must be a whole number from 1 to {MAX_PAGE_SIZE}")]
    Size,
}

impl PageRequest {
    /// Page `number` (default 1) of pages of `size` items (default [`DEFAULT_PAGE_SIZE`]).
    ///
    /// # Errors
    /// [`InvalidPage`] when the number is outside 1..=[`MAX_PAGE_NUMBER`] or the size outside
    /// 1..=[`MAX_PAGE_SIZE`].
    pub fn new(number: Option<u64>, size: Option<u64>) -> Result<Self, InvalidPage> {
        let number = number.unwrap_or(1);
        if !(1..=MAX_PAGE_NUMBER).contains(&number) {
            return Err(InvalidPage::Number);
        }
        let size = match size {
            None => DEFAULT_PAGE_SIZE,
            Some(size) => u32::try_from(size)
                .ok()
                .filter(|size| (1..=MAX_PAGE_SIZE).contains(size))
                .ok_or(InvalidPage::Size)?,
        };
        Ok(Self { number, size })
    }

    /// The page's number, from 1.
    pub const fn number(self) -> u64 {
        self.number
    }

    /// Most items on the page.
    pub const fn size(self) -> u32 {
        self.size
    }

    /// Items before the page, at most [`i64::MAX`]. No list is that long, so such a page is empty.
    pub const fn offset(self) -> u64 {
        let offset = (self.number - 1).saturating_mul(self.size as u64);
        if offset > MAX_PAGE_NUMBER { MAX_PAGE_NUMBER } else { offset }
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { number: 1, size: DEFAULT_PAGE_SIZE }
    }
}

impl fmt::Display for PageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of {} items each", self.number, self.size)
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items on this page, at most [`PageRequest::size`].
    pub items: Vec<T>,
    /// Items on all pages.
    pub total: u64,
    /// The requested page.
    pub request: PageRequest,
}

impl<T> Page<T> {
    /// Number of pages; 0 for an empty list.
    pub const fn pages(&self) -> u64 {
        self.total.div_ceil(self.request.size as u64)
    }

    /// The same page with each item changed.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(change).collect(),
            total: self.total,
            request: self.request,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_from_one_and_sizes_to_a_hundred() {
        assert_eq!(PageRequest::new(None, None), Ok(PageRequest::default()));
        assert_eq!(PageRequest::new(Some(0), None), Err(InvalidPage::Number));
        assert_eq!(PageRequest::new(Some(u64::MAX), None), Err(InvalidPage::Number));
        assert_eq!(PageRequest::new(None, Some(0)), Err(InvalidPage::Size));
        assert_eq!(PageRequest::new(None, Some(101)), Err(InvalidPage::Size));
        assert_eq!(PageRequest::new(None, Some(1 << 32 | 1)), Err(InvalidPage::Size));
        assert!(PageRequest::new(Some(7), Some(100)).is_ok());
    }

    #[test]
    fn the_last_page_of_all_does_not_overflow() {
        let request = PageRequest::new(Some(MAX_PAGE_NUMBER), Some(100)).unwrap();
        assert_eq!(request.offset(), i64::MAX as u64);
    }

    proptest! {
        #[test]
        fn pages_cover_every_item_exactly_once(total in 0_usize..500, size in 1_u64..=100) {
            let items: Vec<usize> = (0..total).collect();
            let mut seen = Vec::new();
            let mut number = 1;
            loop {
                let request = PageRequest::new(Some(number), Some(size)).unwrap();
                let page = Page {
                    items: items
                        .iter()
                        .skip(request.offset() as usize)
                        .take(request.size() as usize)
                        .copied()
                        .collect(),
                    total: total as u64,
                    request,
                };
                prop_assert_eq!(page.items.is_empty(), number > page.pages());
                if page.items.is_empty() {
                    break;
                }
                seen.extend(page.items);
                number += 1;
            }
            prop_assert_eq!(seen, items);
        }
    }
}
