//! Rules without I/O: what a valid account, session, spot or review is, and how each changes.

pub mod account;
pub mod bookmark;
pub mod geo;
pub mod page;
pub mod password;
pub mod review;
pub mod search;
pub mod security_event;
pub mod session;
pub mod spot;
pub mod tag;
pub mod token;
