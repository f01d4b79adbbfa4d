//! Where a request's head ends.

/// A head on its way in.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes so far.
    pub seen: usize,
    started: bool,
    lines: usize,
    /// Whether nothing but a carriage return has come since the last line feed.
    at_line_start: bool,
}

/// What has become of a head by some more bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadProgress {
    Incomplete,
    /// So many bytes came after its end.
    Complete {
        rest: usize,
    },
    TooLarge {
        in_target: bool,
    },
}

impl Head {
    /// Goes on with what has come; a head has at most `limit` bytes.
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
