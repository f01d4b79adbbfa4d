//! `tourin events`: what waits in the outbox, and what was given up.
//!
//! Replaying and discarding work on a set that is named, id by id, and never on whatever happens to
//! be there: what comes in meanwhile is not touched, and what has gone is reported.

pub mod dead_letters;
pub mod outbox;
mod selection;
mod table;

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
    /// Events that were given up after their retries
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        action: DeadLettersAction,
    },
}

/// Runs the command. Exit code 1 when something that was named could not be done.
///
/// # Errors
/// When the store cannot be found or read, or the set is none.
pub async fn run(command: &EventsCommand) -> anyhow::Result<ExitCode> {
    match &command.command {
        EventsSubject::Outbox { action } => outbox::run(action).await,
        EventsSubject::DeadLetters { action } => dead_letters::run(action).await,
    }
}
