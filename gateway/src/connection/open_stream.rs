//! A connection whose exchange has become a stream ([`crate::streams`]): its idle time, and its end when
//! the gateway closes it.
//!
//! A WebSocket gets a Close frame as soon as no other frame is under way. What the service sends later
//! is dropped; what the client sends, such as its own Close frame, still goes to the service. After
//! [`CLOSE_GRACE`] the connection ends in any case. Events end between two writes: a client of events
//! connects again by itself.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::GuardedStream;
use crate::streams::{CloseReason, StreamHandle, StreamKind};
use crate::websocket::{FrameBoundary, close_frame};

/// Time for the rest of a frame and for the client's own Close frame.
const CLOSE_GRACE: Duration = Duration::from_millis(1_000);

/// What the stream of the connection has to do.
#[derive(Debug)]
enum Duty {
    /// Wait.
    None,
    /// Write these bytes, and report them with [`OpenStream::close_frame_written`].
    Write(Bytes),
    /// Flush what was written.
    Flush,
    /// End the connection.
    End,
}

#[derive(Debug)]
enum Progress {
    Open,
    /// To be closed; these bytes of the Close frame are still to be written.
    Closing(Bytes),
    /// The Close frame is out.
    Closed,
}

/// An open stream.
pub(super) struct OpenStream {
    handle: StreamHandle,
    frames: FrameBoundary,
    progress: Progress,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    last_byte: Instant,
}

impl OpenStream {
    fn new(handle: StreamHandle) -> Self {
        Self {
            closing: Box::pin(handle.control.closing().clone().cancelled_owned()),
            handle,
            frames: FrameBoundary::default(),
            progress: Progress::Open,
            last_byte: Instant::now(),
        }
    }

    /// Bytes have come from the client.
    pub(super) fn received(&mut self) {
        self.last_byte = Instant::now();
    }

    /// Bytes have been sent to the client.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        self.last_byte = Instant::now();
        if self.handle.kind == StreamKind::WebSocket {
            self.frames.pass(bytes);
        }
    }

    /// How many of the service's bytes may be sent now; the others are to be dropped.
    pub(super) fn may_send(&self, bytes: &[u8]) -> usize {
        match self.progress {
            Progress::Open => bytes.len(),
            Progress::Closing(_) => self.frames.rest_of_frame(bytes),
            Progress::Closed => 0,
        }
    }

    /// Polled while reading or writing is pending. `timer` is the connection's own.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Duty {
        if matches!(self.progress, Progress::Open) {
            let ends = self.last_byte + self.handle.idle_timeout;
            if timer.deadline() != ends {
                timer.as_mut().reset(ends);
            }
            if timer.as_mut().poll(cx).is_ready() {
                self.handle.control.close(CloseReason::Idle);
            }
            if self.closing.as_mut().poll(cx).is_pending() {
                return Duty::None;
            }
            if self.handle.kind == StreamKind::Events {
                return Duty::End;
            }
            self.progress = Progress::Closing(close_frame(self.handle.control.reason().status()));
            timer.as_mut().reset(Instant::now() + CLOSE_GRACE);
        }
        if timer.poll(cx).is_ready() {
            return Duty::End;
        }
        match &self.progress {
            Progress::Closing(frame) if self.frames.is_between_frames() => {
                Duty::Write(frame.clone())
            }
            Progress::Closed => Duty::Flush,
            _ => Duty::None,
        }
    }

    /// So much of the Close frame is left.
    fn close_frame_written(&mut self, rest: Bytes) {
        self.progress = if rest.is_empty() { Progress::Closed } else { Progress::Closing(rest) };
    }
}

impl GuardedStream {
    /// The stream that the exchange has become, if it has.
    pub(super) fn stream(&mut self) -> Option<&mut OpenStream> {
        if self.stream.is_none() {
            self.stream = self.connection.take_stream().map(OpenStream::new);
        }
        self.stream.as_mut()
    }

    /// Polled when a read or write of a stream is pending: ready when the stream is to end.
    pub(super) fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(stream) = &mut self.stream else { return Poll::Pending };
            match stream.poll(cx, self.timer.as_mut()) {
                Duty::None => return Poll::Pending,
                Duty::End => return Poll::Ready(()),
                Duty::Flush => {
                    let flushed = Pin::new(&mut self.io).poll_flush(cx);
                    let failed = matches!(flushed, Poll::Ready(Err(_)));
                    return if failed { Poll::Ready(()) } else { Poll::Pending };
                }
                Duty::Write(frame) => {
                    let Poll::Ready(Ok(rest)) = self.poll_send(cx, frame) else {
                        return Poll::Ready(());
                    };
                    let blocked = !rest.is_empty();
                    if let Some(stream) = &mut self.stream {
                        stream.close_frame_written(rest);
                    }
                    if blocked {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}
