//! Cuts a byte stream into records in bounded memory: lines, or CSV rows that may span lines.
//!
//! A malformed record does not affect other records. When a quoted CSV field does not end correctly,
//! or not within [`MAX_RECORD_BYTES`], the record's first line is skipped and reading continues at
//! the second. The `csv` crate is not used here: it reads a stray quotation mark as text, and an
//! unclosed one to the end of the file.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest record, in bytes.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// The format of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 4180: the first row names the columns.
    Csv,
    /// One JSON object per line.
    NdJson,
}

/// The next record of the source.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// The fields of a CSV row, or the text of a line as one field.
    Fields(Vec<String>),
    /// The record is malformed, for this reason.
    Broken(&'static str),
}

/// Reads records one by one.
pub(super) struct Records<R> {
    source: R,
    format: Format,
    buffer: Vec<u8>,
    /// The start of the buffer's unread part.
    start: usize,
    ended: bool,
    /// The number of the line at `start`, from 1.
    line: u64,
    bytes: u64,
}

const NOT_UTF8: &str = "not valid UTF-8";
const TOO_LONG: &str = "longer than 64 KiB";
const UNCLOSED: &str = "a quotation mark is not closed";
const AFTER_QUOTE: &str = "text after a closing quotation mark";
const STRAY_QUOTE: &str = "a quotation mark inside a field that does not begin with one";

/// The result of looking for a record in the unread part of the buffer.
enum Scan {
    /// A complete record, its bytes and its lines.
    Complete { bytes: usize, lines: u64, record: Record },
    /// The record may continue after the buffer.
    More,
}

impl<R: AsyncRead + Unpin + Send> Records<R> {
    pub(super) fn new(source: R, format: Format) -> Self {
        Self { source, format, buffer: Vec::new(), start: 0, ended: false, line: 1, bytes: 0 }
    }

    /// Bytes of the source consumed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next record with the number of its first line. Blank lines are skipped. `None` at the end.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<(u64, Record)>> {
        loop {
            let rest = &self.buffer[self.start..];
            let (bytes, lines, record) = match scan(rest, self.format, self.ended) {
                Scan::Complete { bytes, lines, record } => (bytes, lines, record),
                Scan::More if rest.is_empty() && self.ended => return Ok(None),
                Scan::More if rest.len() > MAX_RECORD_BYTES => match line_end(rest) {
                    Some(end) => (end, 1, Record::Broken(UNCLOSED)),
                    None => {
                        let line = self.line;
                        self.skip_line().await?;
                        return Ok(Some((line, Record::Broken(TOO_LONG))));
                    }
                },
                Scan::More => {
                    self.fill().await?;
                    continue;
                }
            };
            let blank = matches!(&record, Record::Fields(fields)
                if fields.len() == 1 && fields[0].trim().is_empty());
            let line = self.line;
            self.consume(bytes, lines);
            if !blank {
                return Ok(Some((line, record)));
            }
        }
    }

    fn consume(&mut self, bytes: usize, lines: u64) {
        self.start += bytes;
        self.bytes += bytes as u64;
        self.line += lines;
    }

    async fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + READ_BYTES, 0);
        let read = self.source.read(&mut self.buffer[old..]).await?;
        self.buffer.truncate(old + read);
        self.ended = read == 0;
        // A byte order mark is not part of the first column's name.
        if self.bytes == 0 && self.buffer.starts_with(b"\xEF\xBB\xBF") {
            self.consume(3, 0);
        }
        Ok(())
    }

    /// Skips a line whose end is not in the buffer.
    async fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            if let Some(end) = line_end(&self.buffer[self.start..]) {
                self.consume(end, 1);
                return Ok(());
            }
            self.consume(self.buffer.len() - self.start, 0);
            if self.ended {
                return Ok(());
            }
            self.fill().await?;
        }
    }
}

/// The length of the first line with its line break.
fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
}

fn scan(rest: &[u8], format: Format, ended: bool) -> Scan {
    if rest.is_empty() {
        return Scan::More;
    }
    match format {
        Format::NdJson => scan_line(rest, ended),
        Format::Csv => scan_row(rest, ended),
    }
}

fn scan_line(rest: &[u8], ended: bool) -> Scan {
    let (bytes, lines) = match line_end(rest) {
        Some(end) => (end, 1),
        None if ended => (rest.len(), 0),
        None => return Scan::More,
    };
    let text = rest[..bytes].trim_ascii_end();
    let record = if text.len() > MAX_RECORD_BYTES {
        Record::Broken(TOO_LONG)
    } else {
        match str::from_utf8(text) {
            Ok(text) => Record::Fields(vec![text.to_owned()]),
            Err(_) => Record::Broken(NOT_UTF8),
        }
    };
    Scan::Complete { bytes, lines, record }
}

fn scan_row(rest: &[u8], ended: bool) -> Scan {
    let broken_line = |why| match line_end(rest) {
        Some(end) => Scan::Complete { bytes: end, lines: 1, record: Record::Broken(why) },
        None if ended => {
            Scan::Complete { bytes: rest.len(), lines: 0, record: Record::Broken(why) }
        }
        None => Scan::More,
    };
    let mut fields: Vec<Vec<u8>> = Vec::new();
    let mut lines = 0;
    let mut at = 0;
    loop {
        // One field per iteration; `at` is its first byte.
        let mut field = Vec::new();
        if rest.get(at) == Some(&b'"') {
            at += 1;
            loop {
                let Some(quote) = rest[at..].iter().position(|byte| *byte == b'"') else {
                    return if ended { broken_line(UNCLOSED) } else { Scan::More };
                };
                let text = &rest[at..at + quote];
                lines += text.iter().filter(|byte| **byte == b'\n').count() as u64;
                field.extend_from_slice(text);
                at += quote + 1;
                match rest.get(at) {
                    Some(b'"') => {
                        field.push(b'"');
                        at += 1;
                    }
                    None if !ended => return Scan::More,
                    _ => break,
                }
            }
        } else {
            let plain = rest[at..].iter().position(|byte| matches!(byte, b',' | b'\n' | b'"'));
            let end = match plain {
                Some(length) => at + length,
                None if ended => rest.len(),
                None => return Scan::More,
            };
            field.extend_from_slice(&rest[at..end]);
            at = end;
            if rest.get(at) == Some(&b'"') {
                return broken_line(STRAY_QUOTE);
            }
            if rest.get(at) != Some(&b',') && field.last() == Some(&b'\r') {
                field.pop();
            }
        }
        fields.push(field);
        match (rest.get(at), rest.get(at + 1)) {
            (Some(b','), _) => at += 1,
            (Some(b'\n'), _) => return complete_row(fields, at + 1, lines + 1),
            (Some(b'\r'), Some(b'\n')) => return complete_row(fields, at + 2, lines + 1),
            (None, _) => return complete_row(fields, at, lines),
            (Some(b'\r'), None) if !ended => return Scan::More,
            (Some(b'\r'), None) => return complete_row(fields, at + 1, lines),
            (Some(_), _) => return broken_line(AFTER_QUOTE),
        }
    }
}

fn complete_row(fields: Vec<Vec<u8>>, bytes: usize, lines: u64) -> Scan {
    let record = if bytes > MAX_RECORD_BYTES {
        Record::Broken(TOO_LONG)
    } else {
        match fields.into_iter().map(String::from_utf8).collect() {
            Ok(fields) => Record::Fields(fields),
            Err(_) => Record::Broken(NOT_UTF8),
        }
    };
    Scan::Complete { bytes, lines, record }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn read(format: Format, bytes: &[u8]) -> Vec<(u64, Record)> {
        let mut records = Records::new(bytes, format);
        let mut all = Vec::new();
        while let Some(record) = records.next().await.unwrap() {
            all.push(record);
        }
        assert_eq!(records.bytes(), bytes.len() as u64);
        all
    }

    fn fields(fields: &[&str]) -> Record {
        Record::Fields(fields.iter().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn rows_may_span_lines_inside_quotes() {
        let csv = "\u{feff}a,b\r\n1,\"two\nlines, \"\"quoted\"\"\"\r\n\r\n3,\n\"\",last";
        assert_eq!(
            read(Format::Csv, csv.as_bytes()).await,
            [
                (1, fields(&["a", "b"])),
                (2, fields(&["1", "two\nlines, \"quoted\""])),
                (5, fields(&["3", ""])),
                (6, fields(&["", "last"])),
            ]
        );
    }

    #[tokio::test]
    async fn a_wrong_quotation_mark_costs_its_line_only() {
        let far = "x".repeat(MAX_RECORD_BYTES);
        let csv = format!("1,a\"b\n2,\"c\"d\n3,ok\n4,\"open\n5,ok\n{far}\n");
        let records = read(Format::Csv, csv.as_bytes()).await;
        assert_eq!(
            records,
            [
                (1, Record::Broken(STRAY_QUOTE)),
                (2, Record::Broken(AFTER_QUOTE)),
                (3, fields(&["3", "ok"])),
                (4, Record::Broken(UNCLOSED)),
                (5, fields(&["5", "ok"])),
                (6, Record::Broken(TOO_LONG)),
            ]
        );
        assert_eq!(
            read(Format::Csv, b"1,\"open\n2,ok").await,
            [(1, Record::Broken(UNCLOSED)), (2, fields(&["2", "ok"]))]
        );
    }

    #[tokio::test]
    async fn long_lines_and_wrong_bytes_cost_themselves_only() {
        let mut bytes = b"{\"id\":1}\n\xff\xfe\n\n".to_vec();
        bytes.extend(vec![b'x'; MAX_RECORD_BYTES * 20]);
        bytes.extend(b"\n{\"id\":2}");
        assert_eq!(
            read(Format::NdJson, &bytes).await,
            [
                (1, fields(&["{\"id\":1}"])),
                (2, Record::Broken(NOT_UTF8)),
                (4, Record::Broken(TOO_LONG)),
                (5, fields(&["{\"id\":2}"])),
            ]
        );
    }

    /// Reads one byte at a time, so that every record is cut at every byte.
    struct Drops<'a>(&'a [u8]);

    impl AsyncRead for Drops<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if let Some((first, rest)) = self.0.split_first() {
                buffer.put_slice(&[*first]);
                self.0 = rest;
            }
            std::task::Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn csv_round_trips(
            rows in proptest::collection::vec(
                proptest::collection::vec("[a가,\"\r\n ]{0,6}", 2..4), 0..6),
        ) {
            let mut csv = String::new();
            for row in &rows {
                let quoted: Vec<_> =
                    row.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
                csv.push_str(&quoted.join(","));
                csv.push_str("\r\n");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let mut records = Records::new(Drops(csv.as_bytes()), Format::Csv);
                let mut found = Vec::new();
                while let Some((_, record)) = records.next().await.unwrap() {
                    found.push(record);
                }
                found
            });
            let expected: Vec<_> = rows.into_iter().map(Record::Fields).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
