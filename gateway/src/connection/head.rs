//! Finds the end of a request's head.

/// A partly received head.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes received.
    pub seen: usize,
    started: bool,
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
        for (at, &byte) in bytes.iter().enumerate() {
            self.seen += 1;
            if self.seen > limit {
                return HeadProgress::TooLarge { in_target: self.lines == 0 };
            }
            // Blank lines before a request are skipped, as Pingora's parser does.
            if !self.started && matches!(byte, b'\r' | b'\n') {
                continue;
            }
            self.started = true;
            match byte {
                b'\n' if self.at_line_start => {
                    return HeadProgress::Complete { rest: bytes.len() - at - 1 };
                }
                b'\n' => {
                    self.lines += 1;
                    self.at_line_start = true;
                }
                b'\r' => {}
                _ => self.at_line_start = false,
            }
        }
        HeadProgress::Incomplete
    }
}
