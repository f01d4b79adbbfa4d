//! Short-lived data that is read often, behind the ports of [`app::ports`](crate::app::ports).

pub mod redis;
