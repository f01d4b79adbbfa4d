//! Core's stream of ended sessions in Redis.
//!
//! # Format
//! Written by core (`services/core/src/store/redis`), described in
//! `docs/decisions/0008-sessions-on-redis.md`; with `PREFIX` for the prefix of the settings:
//!
//! | key | type | what |
//! |---|---|---|
//! | `{PREFIX}:revocations` | stream | one entry per ended session; its id is the time of the append |
//! | `{PREFIX}:log` | string | the stream's identity: another one means that the stream was lost |
//!
//! An entry has two fields. `session` is the session's id, as in the `sid` of its tokens. `until` is
//! when its last token expires, in microseconds since the epoch. An entry with `invalidate`, a tag of
//! cached responses that are out of date, ends no session. Readers ignore other fields. Core removes
//! entries whose `until` is past, from the oldest on.
//!
//! # Guarantee: no entry is missed
//! The cursor is kept across reconnects. Before each read it is validated against the stream's
//! identity and newest entry. If Redis was emptied or replaced, the stream is read from its
//! beginning. Reading an entry twice is harmless, and an entry that was removed unread has expired.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio_util::sync::CancellationToken;
use tourin_chassis::redis::{RedisUrl, session_key_base};

use super::{RETRY_AFTER, Revocations};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Longest wait for an entry. The next command then shows whether the connection still works.
const MAX_WAIT: Duration = Duration::from_millis(2_000);
/// Time for a response besides the wait.
const ANSWER_MARGIN: Duration = Duration::from_millis(1_000);
const BATCH: usize = 1_000;

/// An entry of Redis: its id, then field, value, field, value.
type RawEntry = (String, Vec<String>);

/// The stream's location.
#[derive(Clone)]
pub struct RevocationStream {
    client: Client,
    stream: String,
    log: String,
}

impl fmt::Debug for RevocationStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationStream({})", self.address())
    }
}

impl RevocationStream {
    /// The stream under `prefix` in the Redis at `url`. Does not connect yet.
    ///
    /// # Errors
    /// When the URL is invalid, or the prefix would put keys into different slots. Names the flag,
    /// without the URL.
    pub fn new(url: &RedisUrl, prefix: &str) -> anyhow::Result<Self> {
        let client = Client::open(url.expose()).ok().context("--redis-url: it cannot be used")?;
        let base = session_key_base(prefix)?;
        Ok(Self { client, stream: format!("{base}revocations"), log: format!("{base}log") })
    }

    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    async fn connect(&self, wait: Duration) -> RedisResult<MultiplexedConnection> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(wait + ANSWER_MARGIN));
        self.client.get_multiplexed_async_connection_with_config(&settings).await
    }

    /// The stream's identity and the id of its newest entry.
    async fn head(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<(Option<String>, Option<EntryId>)> {
        let mut both = redis::pipe();
        both.cmd("GET").arg(&self.log);
        both.cmd("XREVRANGE").arg(&self.stream).arg("+").arg("-").arg("COUNT").arg(1);
        let (log, newest): (Option<String>, Vec<RawEntry>) = both.query_async(connection).await?;
        Ok((log, newest.first().and_then(|(id, _)| id.parse().ok())))
    }

    /// The entries after `after`, oldest first; waits for one if there is none.
    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        after: EntryId,
        wait: Option<Duration>,
    ) -> RedisResult<Vec<RawEntry>> {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(BATCH);
        if let Some(wait) = wait {
            // Zero would mean for ever.
            read.arg("BLOCK").arg(wait.as_millis().max(1).to_string());
        }
        read.arg("STREAMS").arg(&self.stream).arg(after.to_string());
        let streams: Option<Vec<(String, Vec<RawEntry>)>> = read.query_async(connection).await?;
        Ok(streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect())
    }
}

/// An entry's id: the time of its append in milliseconds, and a number within that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct EntryId {
    ms: u64,
    number: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.number)
    }
}

impl FromStr for EntryId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ms, number) = text.split_once('-').context("an entry's id has two parts")?;
        Ok(Self { ms: ms.parse()?, number: number.parse()? })
    }
}

/// The reader's position.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cursor {
    log: Option<String>,
    after: EntryId,
    /// Whether the stream's end has been read; until then a read does not wait.
    caught_up: bool,
}

impl Cursor {
    /// Resets itself to the beginning unless it fits the stream with the identity `log` and the newest
    /// entry `newest`. Whether it was reset.
    fn validate(&mut self, log: Option<String>, newest: Option<EntryId>) -> bool {
        let is_another = self.log.is_some() && self.log != log;
        // The stream was lost, or all of it has expired and nothing is read twice.
        let is_ahead = newest.unwrap_or_default() < self.after;
        if is_another {
            tracing::warn!("the stream of ended sessions is a new one; reading it from its start");
        }
        if is_another || is_ahead {
            *self = Self::default();
        }
        self.log = log;
        is_another || is_ahead
    }
}

/// The ended session of an entry, and when its tokens expire; `None` if the entry is malformed.
fn read_entry(fields: &[String]) -> Option<(String, DateTime<Utc>)> {
    let until = DateTime::from_timestamp_micros(field(fields, "until")?.parse().ok()?)?;
    Some((field(fields, "session")?.to_owned(), until))
}

/// The value of an entry's field.
fn field<'a>(fields: &'a [String], name: &str) -> Option<&'a str> {
    let mut pairs = fields.chunks_exact(2);
    pairs.find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
}

impl Revocations {
    /// Reads the stream until `stop`, and reconnects without end.
    pub async fn follow_stream(&self, stream: RevocationStream, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_reading(&stream) => {}
            () = self.keep_pruned() => {}
        }
    }

    async fn keep_reading(&self, stream: &RevocationStream) {
        let address = stream.address();
        let mut cursor = Cursor::default();
        let mut was_reading = true;
        loop {
            let Err(error) = self.read_on(stream, &mut cursor, &mut was_reading).await;
            if was_reading {
                tracing::warn!(address, %error, "cannot read the ended sessions from Redis");
            }
            was_reading = false;
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Reads from `cursor` over one connection until it fails.
    async fn read_on(
        &self,
        stream: &RevocationStream,
        cursor: &mut Cursor,
        was_reading: &mut bool,
    ) -> RedisResult<Infallible> {
        // Several waits must fit into the bound, so that a stream without entries is not stale.
        let max_wait = MAX_WAIT.min(self.stale_after / 3);
        let mut connection = stream.connect(max_wait).await?;
        loop {
            let (log, newest) = stream.head(&mut connection).await?;
            if cursor.validate(log, newest) {
                self.invalidate_all();
            }
            let wait = cursor.caught_up.then_some(max_wait);
            let entries = stream.read(&mut connection, cursor.after, wait).await?;
            cursor.caught_up = entries.len() < BATCH;
            self.take(cursor, &entries);
            if cursor.caught_up {
                self.contacted();
            }
            if !*was_reading {
                *was_reading = true;
                tracing::info!(address = stream.address(), "reading the ended sessions again");
            }
        }
    }

    fn take(&self, cursor: &mut Cursor, entries: &[RawEntry]) {
        if let Some(last) = entries.last().and_then(|(id, _)| id.parse().ok()) {
            cursor.after = last;
        }
        self.end(entries.iter().filter_map(|(id, fields)| {
            if let Some(tag) = field(fields, "invalidate") {
                self.invalidate(tag);
                return None;
            }
            let entry = read_entry(fields);
            if entry.is_none() {
                tracing::warn!(id, "an entry of the stream of ended sessions is malformed");
            }
            entry
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EntryId {
        text.parse().unwrap()
    }

    fn fields(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|field| (*field).to_owned()).collect()
    }

    #[test]
    fn ids_are_ordered_by_number_not_by_letter() {
        assert!(id("9-1") < id("10-0") && id("10-9") < id("10-10"));
        assert_eq!(id("1800000000000-3").to_string(), "1800000000000-3");
        for bad in ["", "1", "1-", "-1", "1-x", "+-1"] {
            assert!(bad.parse::<EntryId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_place_holds_in_its_own_stream_only() {
        let log = |name: &str| Some(name.to_owned());
        let at = |name: &str| Cursor { log: log(name), after: id("50-1"), caught_up: true };
        for (what, now, newest, holds) in [
            ("nothing new", log("a"), Some(id("50-1")), true),
            ("something new", log("a"), Some(id("60-0")), true),
            ("another stream, already further", log("b"), Some(id("60-0")), false),
            ("the same name, but behind", log("a"), Some(id("50-0")), false),
            ("all gone", log("a"), None, false),
            ("emptied", None, None, false),
        ] {
            let mut cursor = at("a");
            cursor.validate(now.clone(), newest);
            let begun = Cursor { log: now, ..Cursor::default() };
            assert_eq!(cursor, if holds { at("a") } else { begun }, "{what}");
        }
        // A stream that never had entries is not read again.
        let mut waiting = Cursor { caught_up: true, ..Cursor::default() };
        waiting.validate(None, None);
        assert!(waiting.caught_up);
        // The first entry gives the stream its name.
        let mut waiting = Cursor { log: None, caught_up: true, ..Cursor::default() };
        waiting.validate(log("a"), Some(id("1-0")));
        assert_eq!(waiting, Cursor { log: log("a"), after: EntryId::default(), caught_up: true });
    }

    #[test]
    fn an_entry_is_read_by_the_names_of_its_fields() {
        let until = DateTime::from_timestamp_micros(1_800_000_000_000_001);
        let read = read_entry(&fields(&["until", "1800000000000001", "why", "x", "session", "s1"]));
        assert_eq!(read, until.map(|until| ("s1".to_owned(), until)));
        for bad in [&[][..], &["session", "s1"], &["until", "1"], &["session", "s1", "until", "x"]]
        {
            assert_eq!(read_entry(&fields(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bad_setting_is_named_and_a_password_is_not() {
        let url = "redis://user:hunter2@there:7000/1".parse().unwrap();
        for prefix in ["", "a{b", "a}b"] {
            let error = RevocationStream::new(&url, prefix).err().unwrap();
            assert!(format!("{error:#}").contains("--session-redis-prefix"), "{error:#}");
        }
        let stream = RevocationStream::new(&url, "tourin:sessions").unwrap();
        assert_eq!(format!("{stream:?}"), "RevocationStream(there:7000)");
        assert_eq!(stream.stream, "{tourin:sessions}:revocations");
    }
}
