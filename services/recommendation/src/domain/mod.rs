//! Rules without I/O: how a trend decays, when two spots are alike, what a member is shown.

pub mod content;
pub mod decay;
pub mod interaction;
pub mod ranking;
pub mod similarity;
pub mod spot;
pub mod trend;
