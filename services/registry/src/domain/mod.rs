//! The registry's rules. No I/O; the time is passed in.

mod catalogue;
mod history;
mod watchers;

pub use catalogue::{Catalogue, CatalogueLimits, RegisterError, Unknown};
pub use history::Since;
pub use watchers::{Session, TooManyWatchers, WatcherKind, WatcherLimits, Watchers};
