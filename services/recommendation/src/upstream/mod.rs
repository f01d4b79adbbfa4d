//! Other services that this one calls.

pub mod core;
