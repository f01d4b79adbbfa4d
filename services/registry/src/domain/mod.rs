//! The registry's rules. No I/O; the time is passed in.

mod acks;
mod catalogue;
mod departures;
mod history;
mod overrides;
mod protection;
mod refusals;
mod sessions;
mod view;

pub use acks::{AckState, Acks};
pub use catalogue::{Catalogue, CatalogueLimits, MAX_PAUSE, Swept};
pub use departures::MAX_DEPARTURES;
pub use history::Since;
pub use overrides::Override;
pub use protection::{LeaseState, ProtectionRule, Verdict};
pub use refusals::{LeaseError, RegisterError};
pub use sessions::{Session, Sessions, TooManyWatchers, WatcherKind, WatcherLimits};
pub use view::{Key, View, kind_of};
