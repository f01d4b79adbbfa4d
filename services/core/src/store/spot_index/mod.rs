//! The search index of spots, in memory, the same for every database.
//!
//! [`SpotIndex`] is the index itself, without I/O. [`LiveIndex`] holds the one that searches are answered
//! from and keeps it as new as the tables; a database only says which spots have changed.

mod index;
mod live;
#[cfg(test)]
mod tests;

pub(super) use self::index::SpotIndex;
pub(super) use self::live::LiveIndex;
