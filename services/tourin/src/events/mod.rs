//! `tourin events`: the outbox, and dead letters.
//!
//! Replay and discard take ids and never "all", so that events which arrive meanwhile are not touched.
//! Ids that are gone are reported.

pub mod dead_letters;
pub mod outbox;
mod selection;
pub(crate) mod table;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::dead_letters::DeadLettersAction;
use self::outbox::OutboxAction;

/// What to look at.
#[derive(Debug, Clone, Args)]
pub struct EventsCommand {
    /// What to look at.
    #[command(subcommand)]
    pub command: EventsSubject,
}

/// The things that can be looked at.
#[derive(Debug, Clone, Subcommand)]
pub enum EventsSubject {
    /// Events that core has committed: waiting for the bus, refused by it, or confirmed a while ago
    Outbox {
        /// What to do with them.
        #[command(subcommand)]
        action: OutboxAction,
    },
    /// Events that failed all their retries
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        action: DeadLettersAction,
    },
}

/// Runs the command. Exit code 1 when it failed for one of the ids.
///
/// # Errors
/// When the store cannot be found or read, or the ids are invalid.
pub async fn run(command: &EventsCommand) -> anyhow::Result<ExitCode> {
    match &command.command {
        EventsSubject::Outbox { action } => outbox::run(action).await,
        EventsSubject::DeadLetters { action } => dead_letters::run(action).await,
    }
}
