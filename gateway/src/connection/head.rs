//! Finds the end of a request's head.

use memchr::memchr;

/// A partly received head.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes received.
    seen: usize,
    /// Whether more than blank lines has come.
    pub started: bool,
    lines: usize,
    /// Whether only a carriage return has come since the last line feed.
    at_line_start: bool,
}

/// The state of a head after more bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadProgress {
    Incomplete,
    /// With the number of bytes after its end.
    Complete {
        rest: usize,
    },
    TooLarge {
        in_target: bool,
    },
}

impl Head {
    /// Takes more bytes; a head has at most `limit`.
    pub fn feed(&mut self, bytes: &[u8], limit: usize) -> HeadProgress {
        let mut at = 0;
        if !self.started {
            // Blank lines before a request are skipped, as Pingora's parser does.
            at = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.started = at < bytes.len();
        }
        // Those beyond the limit are not looked at.
        let end = bytes.len().min(limit.saturating_sub(self.seen));
        while let Some(length) = bytes.get(at..end).and_then(|rest| memchr(b'\n', rest)) {
            let line = &bytes[at..at + length];
            at += length + 1;
            if self.is_blank(line) {
                self.seen += at;
                return HeadProgress::Complete { rest: bytes.len() - at };
            }
            self.lines += 1;
            self.at_line_start = true;
        }
        if end < bytes.len() {
            return HeadProgress::TooLarge { in_target: self.lines == 0 };
        }
        self.at_line_start = bytes.get(at..).is_none_or(|rest| self.is_blank(rest));
        self.seen += bytes.len();
        HeadProgress::Incomplete
    }

    /// Whether a line that ends with `rest` has nothing but carriage returns.
    fn is_blank(&self, rest: &[u8]) -> bool {
        self.at_line_start && rest.iter().all(|byte| *byte == b'\r')
    }
}
