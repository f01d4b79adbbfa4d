//! Finds the end of a request's body.

/// How a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEnd {
    /// After so many bytes.
    After(u64),
    /// After its last chunk and the trailer fields (RFC 9112, 7.1).
    Chunked,
    /// With the connection, as what a WebSocket's client sends.
    Never,
}

/// How much of a body has been read.
#[derive(Debug, Default)]
pub(super) struct BodyProgress {
    read: u64,
    chunks: Chunks,
}

impl BodyProgress {
    /// Whether nothing of the body is left.
    pub fn is_complete(&self, end: BodyEnd) -> bool {
        match end {
            BodyEnd::After(bytes) => self.read >= bytes,
            BodyEnd::Chunked => self.chunks == Chunks::Complete,
            BodyEnd::Never => false,
        }
    }

    /// Takes more bytes. Returns how many of them belong to the body; the others follow it.
    pub fn take(&mut self, end: BodyEnd, bytes: &[u8]) -> usize {
        let taken = match end {
            BodyEnd::After(length) => usize::try_from(length.saturating_sub(self.read))
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
            BodyEnd::Chunked => self.chunks.take(bytes),
            BodyEnd::Never => bytes.len(),
        };
        self.read += taken as u64;
        taken
    }
}

/// A position in a chunked body. Pingora's parser refuses what is not valid; here only the end is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunks {
    /// In the digits of a chunk's size.
    Size(u64),
    /// After them, up to the end of the line.
    SizeLine(u64),
    /// So many bytes are left of a chunk, with its end of line.
    Data(u64),
    /// In the trailer fields. `blank` says whether nothing but carriage returns has come in this line.
    Trailer {
        blank: bool,
    },
    Complete,
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Size(0)
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Some(&byte) = bytes.get(taken).filter(|_| *self != Self::Complete) {
            if let Self::Data(left) = *self {
                let rest = bytes.len() - taken;
                let data = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
                taken += data;
                let left = left - data as u64;
                *self = if left == 0 { Self::Size(0) } else { Self::Data(left) };
                continue;
            }
            taken += 1;
            *self = self.after(byte);
        }
        taken
    }

    /// The position after a byte that is not data.
    fn after(self, byte: u8) -> Self {
        const LINE_END: u64 = 2;
        match (self, byte) {
            (Self::Size(0) | Self::SizeLine(0), b'\n') => Self::Trailer { blank: true },
            (Self::Size(size) | Self::SizeLine(size), b'\n') => {
                Self::Data(size.saturating_add(LINE_END))
            }
            (Self::Size(size), byte) => match char::from(byte).to_digit(16) {
                // Of a size that is too large the maximum. The parser refuses it.
                Some(digit) => Self::Size(size.saturating_mul(16).saturating_add(digit.into())),
                None => Self::SizeLine(size),
            },
            (Self::Trailer { blank: true }, b'\n') => Self::Complete,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { blank: true },
            (Self::Trailer { blank }, byte) => Self::Trailer { blank: blank && byte == b'\r' },
            (same, _) => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEXT: &[u8] = b"GET / HTTP/1.1\r\n";

    #[test]
    fn a_declared_body_ends_after_its_bytes() {
        let mut body = BodyProgress::default();
        let end = BodyEnd::After(5);
        assert!(BodyProgress::default().is_complete(BodyEnd::After(0)));
        assert_eq!((body.take(end, b"abc"), body.is_complete(end)), (3, false));
        assert_eq!((body.take(end, b"deGET"), body.is_complete(end)), (2, true));
        assert_eq!(body.take(end, b"GET"), 0);
        assert_eq!(body.take(BodyEnd::Never, b"frames"), 6);
        assert!(!body.is_complete(BodyEnd::Never));
    }

    #[test]
    fn a_chunked_body_ends_after_its_trailers() {
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "00a;name=value\r\n0123456789\r\n0;last\r\n\r\n",
            "5\r\n0\r\n\r\n\r\n0\r\n\r\n",
            "A\r\n\n\n\n\n\n\n\n\n\n\n\r\n000\r\nfield: value\r\nother: \r\n\r\n",
            // Pingora takes a chunk without a size for the last one.
            "\r\nfield: value\r\n\r\n",
        ] {
            let bytes = [body.as_bytes(), NEXT].concat();
            assert_eq!(Chunks::default().take(&bytes), body.len(), "{body:?}");
            let mut unfinished = Chunks::default();
            assert_eq!(unfinished.take(&bytes[..body.len() - 1]), body.len() - 1);
            assert_ne!(unfinished, Chunks::Complete, "{body:?}");
        }
        let endless = [b"fffffffffffffffff\r\n".as_slice(), &[b'0'; 99], b"\r\n\r\n"].concat();
        assert_eq!(Chunks::default().take(&endless), endless.len());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_body_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in proptest::collection::vec(1_usize..30, 1..60),
        ) {
            let mut body = Vec::new();
            for chunk in chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let all = [&body, NEXT].concat();
            let (mut state, mut at) = (Chunks::default(), 0);
            for cut in cuts.into_iter().chain([all.len()]) {
                let end = (at + cut).min(all.len());
                let taken = state.take(&all[at..end]);
                prop_assert_eq!(taken, end.min(body.len()) - at.min(body.len()));
                at = end;
            }
            prop_assert_eq!(state, Chunks::Complete);
        }
    }
}
