//! One-way commands.

use std::sync::Arc;

use super::{DEFAULT_MAX_BYTES, Message, SendError, check_length};
use crate::Clock;
use crate::bus::{Binding, COMMAND_EXCHANGE, Publisher, Subscription};
use crate::trace;

/// Sends commands, each to one named queue, without a reply.
///
/// A command that must not be lost with the sender belongs in the sender's outbox instead: append
/// [`Commands::outgoing`] there, in the transaction that decides on it.
#[derive(Clone)]
pub struct Commands {
    publisher: Arc<dyn Publisher>,
    clock: Clock,
    max_bytes: usize,
}

impl Commands {
    /// Commands over `publisher`, of at most [`DEFAULT_MAX_BYTES`].
    pub fn new(publisher: Arc<dyn Publisher>, clock: Clock) -> Self {
        Self { publisher, clock, max_bytes: DEFAULT_MAX_BYTES }
    }

    /// Like `new`, with another bound on a command's envelope, in bytes.
    #[must_use]
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// The receiver's subscription to `queue`, for commands and requests. The rest is the same as for events: adjust
    /// prefetch and shards, subscribe, and run a [`Consumer`](crate::consumer::Consumer).
    pub fn subscription(queue: &str) -> Subscription {
        Subscription::new(queue, vec![Binding::new(COMMAND_EXCHANGE, queue)])
    }

    /// Sends one and waits for the bus's confirm.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], or the bus's error. The bus may have carried it all the same: send it again only if the
    /// receiver tolerates duplicates.
    pub async fn send(&self, queue: &str, command: Message) -> Result<(), SendError> {
        let command = command.for_queue(queue, (self.clock)());
        check_length(&command, self.max_bytes)?;
        Ok(trace::send(&*self.publisher, command).await?)
    }

    /// A command for the outbox.
    pub fn outgoing(&self, queue: &str, command: Message) -> crate::events::Outgoing {
        command.for_queue(queue, (self.clock)())
    }
}
