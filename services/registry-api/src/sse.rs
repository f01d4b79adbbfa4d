//! An incremental parser of server-sent events, as the WHATWG HTML standard (section 9.2.6)
//! describes them, with a bound on what one event may take. The crates for this
//! (eventsource-stream 0.2, sse-stream 0.2) have no bound.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `event` field; `message` when there was none.
    pub name: String,
    /// The `data` fields, joined by line feeds.
    pub data: String,
    /// The last `id` field seen on this stream; empty when there was none yet.
    pub id: String,
}

/// The stream cannot be parsed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// An event, or one line of it, is longer than the bound.
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    /// The stream is not UTF-8.
    #[error("the stream is not UTF-8")]
    NotUtf8,
}

/// Parses a stream in pieces of any size. Holds at most twice the bound: one unfinished line and the
/// data before it.
///
/// ```
/// use tourin_registry_api::sse::Parser;
///
/// let mut parser = Parser::new(1_024);
/// assert!(parser.push(b"event: change\ndata: {\"version\"").unwrap().is_empty());
/// let events = parser.push(b": 7}\n\n").unwrap();
/// assert_eq!((events[0].name.as_str(), events[0].data.as_str()), ("change", r#"{"version": 7}"#));
/// ```
#[derive(Debug)]
pub struct Parser {
    max_event_bytes: usize,
    /// The unfinished line.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to it.
    after_cr: bool,
    /// A byte order mark may stand before the first line.
    first_line: bool,
    name: String,
    data: String,
    has_data: bool,
    id: String,
}

impl Parser {
    /// A parser for one stream whose events take at most `max_event_bytes`.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            line: Vec::new(),
            after_cr: false,
            first_line: true,
            name: String::new(),
            data: String::new(),
            has_data: false,
            id: String::new(),
        }
    }

    /// The events that the next piece completes, in order.
    ///
    /// # Errors
    /// [`ParseError`]; the stream cannot be used any further.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<Vec<Event>, ParseError> {
        let mut events = Vec::new();
        if self.after_cr && !piece.is_empty() {
            self.after_cr = false;
            piece = piece.strip_prefix(b"\n").unwrap_or(piece);
        }
        while let Some(end) = piece.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.extend_line(&piece[..end])?;
            let ended_by_cr = piece[end] == b'\r';
            piece = &piece[end + 1..];
            if ended_by_cr {
                match piece.first() {
                    Some(b'\n') => piece = &piece[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            events.extend(self.end_line()?);
        }
        self.extend_line(piece)?;
        Ok(events)
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        if self.line.len() + bytes.len() > self.max_event_bytes {
            return Err(ParseError::TooLong(self.max_event_bytes));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<Event>, ParseError> {
        let bytes = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&bytes).map_err(|_| ParseError::NotUtf8)?;
        let line = match std::mem::take(&mut self.first_line) {
            true => line.strip_prefix('\u{feff}').unwrap_or(line),
            false => line,
        };
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (line, ""),
        };
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                if self.data.len() + value.len() > self.max_event_bytes {
                    return Err(ParseError::TooLong(self.max_event_bytes));
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            // A comment (empty field name), `retry`, or an unknown field.
            _ => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        let name = if name.is_empty() { "message".to_owned() } else { name };
        Some(Event { name, data, id: self.id.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<Event>, ParseError> {
        let mut parser = Parser::new(1_000);
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(parser.push(piece)?);
        }
        Ok(events)
    }

    fn event(name: &str, data: &str, id: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: id.into() }
    }

    #[test]
    fn fields_comments_and_defaults() {
        let stream = b"\xef\xbb\xbf: hello\n\nevent: change\nid: 7\ndata: {\"a\":1}\n\n\
            data:x\ndata\ndata:  y\nretry: 10\nnonsense\n\nevent: nothing\n\ndata: z\nid\n\ndata: unfinished\n";
        assert_eq!(
            parse(&[stream]).unwrap(),
            [
                event("change", "{\"a\":1}", "7"),
                event("message", "x\n\n y", "7"),
                event("message", "z", ""),
            ]
        );
    }

    #[test]
    fn every_line_ending_counts_once() {
        let expected = [event("message", "a\nb", "")];
        for stream in ["data:a\ndata:b\n\n", "data:a\rdata:b\r\r", "data:a\r\ndata:b\r\n\r\n"] {
            assert_eq!(parse(&[stream.as_bytes()]).unwrap(), expected, "{stream:?}");
        }
        assert_eq!(parse(&[b"data:a\r", b"\ndata:b\r", b"", b"\n\r\n"]).unwrap(), expected);
    }

    #[test]
    fn long_lines_and_long_events_are_refused() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"data:12345"), Ok(vec![]));
        assert_eq!(parser.push(b"6"), Err(ParseError::TooLong(10)));
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"data:12345\ndata:1234\n"), Ok(vec![]));
        assert_eq!(parser.push(b"data:12\n"), Err(ParseError::TooLong(10)));
        assert_eq!(Parser::new(10).push(&[b'x'; 11]), Err(ParseError::TooLong(10)));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert_eq!(parse(&[b"data: \xff\n\n"]), Err(ParseError::NotUtf8));
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_does_not_matter(
            stream in "(data|id|event|: |\\PC|\r|\n|\r\n|:){0,80}",
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = stream.as_bytes();
            let mut ends: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut start = 0;
            let mut pieces = Vec::new();
            for end in ends {
                pieces.push(&bytes[start..end]);
                start = end;
            }
            prop_assert_eq!(parse(&pieces), parse(&[bytes]));
        }

        #[test]
        fn what_was_written_can_be_read(data in "[^\r\n\0]{0,60}", name in "[a-z]{1,9}", id in 0u64..) {
            let stream = format!("event: {name}\nid: {id}\ndata: {data}\n\n");
            prop_assert_eq!(
                parse(&[stream.as_bytes()]).unwrap(),
                [event(&name, &data, &id.to_string())]
            );
        }
    }
}
