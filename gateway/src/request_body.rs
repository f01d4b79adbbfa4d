//! Reading a request's body before an instance is asked.
//!
//! A client may send its body as slowly as its time-outs allow. Until the body is complete, the request
//! holds no connection to an instance and no permit of the concurrent requests, only memory for what
//! has arrived. That memory is bounded too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::EXPECT;
use http::{HeaderMap, Version};
use pingora::Error;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::messages;
use crate::responses::Response;

/// Largest body that is read before the request goes on: as much as Pingora keeps to send again. A
/// larger one, where a route allows it, passes through as it comes.
pub const BUFFERED_BYTES: u64 = 64 << 10;
/// Memory for bodies, in bytes: 1,024 of the largest.
const MEMORY_BYTES: usize = 64 << 20;

/// Why a body was not read.
pub enum Unread {
    /// It is refused.
    Refused(Response),
    /// Reading failed.
    Failed(Box<Error>),
}

impl From<Box<Error>> for Unread {
    fn from(error: Box<Error>) -> Self {
        Self::Failed(error.into_down())
    }
}

/// The memory of bodies.
#[derive(Debug, Clone)]
pub struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MEMORY_BYTES)))
    }
}

impl BodyMemory {
    /// Reads the body of a request whose declared length is `declared`, of at most `limit` bytes, which
    /// may stall for `stall` and must be complete at `deadline`. Pingora sends it on. The result counts
    /// the body's memory.
    ///
    /// # Errors
    /// Why it was not read.
    pub async fn read(
        &self,
        session: &mut Session,
        declared: Option<u64>,
        limit: u64,
        (stall, deadline): (Duration, Instant),
    ) -> Result<Option<OwnedSemaphorePermit>, Unread> {
        if declared.unwrap_or(limit) > BUFFERED_BYTES {
            return Ok(None);
        }
        let header = session.req_header();
        let invite = header.version >= Version::HTTP_11 && waits_for_invitation(&header.headers);
        let client: &mut ServerSession = session.as_mut();
        client.enable_retry_buffering();
        if invite {
            client.write_continue_response().await?;
        }
        let mut memory: Option<OwnedSemaphorePermit> = None;
        let mut length = 0;
        // Pingora has no time-outs for the bodies of HTTP/2, and the stream cannot tell them apart.
        let is_timed = client.is_http2();
        loop {
            let read = client.read_request_body();
            let read = if is_timed {
                let until = deadline.min(Instant::now() + stall);
                tokio::time::timeout_at(until.into(), read)
                    .await
                    .map_err(|_| Unread::Refused(Response::client_too_slow()))?
            } else {
                read.await
            };
            let Some(part) = read? else { break };
            length += part.len() as u64;
            if length > limit {
                return Err(Unread::Refused(Response::body_too_large(limit)));
            }
            let bytes = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(bytes) else {
                let message = messages::too_many_requests_at_once();
                return Err(Unread::Refused(Response::unavailable(message)));
            };
            match &mut memory {
                Some(memory) => memory.merge(more),
                None => memory = Some(more),
            }
        }
        Ok(memory)
    }
}

/// Whether the client sends its body only when it is asked for (RFC 9110, 10.1.1).
fn waits_for_invitation(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
