//! What is kept for a while and read often, behind the ports of [`app::ports`](crate::app::ports).

pub mod redis;
