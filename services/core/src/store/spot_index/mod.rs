//! The search index of spots, in memory, the same for every database.
//!
//! [`SpotIndex`] is the index, without I/O. [`LiveIndex`] holds the index that serves searches and
//! keeps it as current as the tables. A database only reports the changed spots.

mod index;
mod live;
#[cfg(test)]
mod tests;
mod vocabulary;

pub(super) use self::index::SpotIndex;
pub(super) use self::live::LiveIndex;
