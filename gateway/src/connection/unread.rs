//! What has come from the client and is not for Pingora yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that came in one read with the end of a head or of a body. At most as many as Pingora has asked for in
/// one read.
#[derive(Debug, Default)]
pub(super) struct Unread(BytesMut);

impl Unread {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads them, or from `io` when there are none.
    pub fn poll_read(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return io.poll_read(cx, buf);
        }
        let length = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0.split_to(length));
        Poll::Ready(Ok(()))
    }

    /// Takes the last `length` bytes out of `buf`, to be read again.
    pub fn take_back(&mut self, buf: &mut ReadBuf<'_>, length: usize) {
        if length == 0 {
            return;
        }
        let end = buf.filled().len() - length;
        let later = std::mem::replace(&mut self.0, BytesMut::from(&buf.filled()[end..]));
        self.0.unsplit(later);
        buf.set_filled(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_taken_back_come_again_before_later_ones() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut io: &[u8] = b"later";
        let mut unread = Unread(BytesMut::from(&b"head|body|next"[..]));
        let mut read = |unread: &mut Unread, most, back| {
            let mut bytes = [0; 9];
            let mut buf = ReadBuf::new(&mut bytes[..most]);
            let ready = unread.poll_read(Pin::new(&mut io), &mut cx, &mut buf);
            assert!(matches!(ready, Poll::Ready(Ok(()))));
            unread.take_back(&mut buf, back);
            String::from_utf8(buf.filled().to_vec()).unwrap()
        };
        for (most, back, expected) in
            [(9, 4, "head|"), (9, 4, "body|"), (9, 0, "next"), (5, 2, "lat"), (9, 0, "er")]
        {
            assert_eq!(read(&mut unread, most, back), expected);
        }
        assert!(unread.is_empty());
    }
}
