//! Rules without I/O: decay of the trend, similarity of spots, ranking for a member.

pub mod content;
pub mod decay;
pub mod interaction;
pub mod ranking;
pub mod similarity;
pub mod spot;
pub mod trend;
