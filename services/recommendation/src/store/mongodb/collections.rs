//! The collections of the histories.
//!
//! | collection | a document | key |
//! |---|---|---|
//! | `members` | a member's complete history | member |
//! | `holders` | a member who knows a spot, with the time: read by spot, latest first | spot and member |
//! | `degrees` | how many members know a spot | spot |
//! | `state` | `deleted_members`, `prune:<what>` | |
//!
//! `holders` and `degrees` are derived from `members`. The recorder keeps them consistent.

pub(super) const MEMBERS: &str = "members";
pub(super) const HOLDERS: &str = "holders";
pub(super) const DEGREES: &str = "degrees";
/// Documents about the stores themselves.
pub(super) const STATE: &str = "state";
/// The document in [`STATE`] with the highest `seq` of all deleted members.
pub(super) const DELETED: &str = "deleted_members";
