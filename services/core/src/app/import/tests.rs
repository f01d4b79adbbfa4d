use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::io::ReadBuf;
use tourin_chassis::clock::SystemClock;

use super::*;
use crate::app::spots::Upserted;
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SpotFilter, SpotSort};
use crate::domain::spot::{Spot, SpotId, SpotOverview};
use crate::domain::tag::Tag;

/// A store that only keeps the written spots.
#[derive(Default)]
struct RecordingStore {
    spots: Mutex<HashMap<SpotId, SpotDraft>>,
    batches: AtomicU64,
}

#[async_trait]
impl SpotStore for RecordingStore {
    async fn find(&self, _: SpotId) -> Result<Option<Spot>, StoreError> {
        unreachable!("an import does not look")
    }

    async fn search(
        &self,
        _: &SpotFilter,
        _: SpotSort,
        _: PageRequest,
    ) -> Result<Option<Page<SpotOverview>>, StoreError> {
        unreachable!("an import does not look")
    }

    async fn map(
        &self,
        _: &SpotFilter,
        _: &Bounds,
        _: usize,
    ) -> Result<Option<Vec<SpotOverview>>, StoreError> {
        unreachable!("an import does not look")
    }

    async fn upsert_batch(
        &self,
        drafts: &[SpotDraft],
        _: DateTime<Utc>,
    ) -> Result<Upserted, StoreError> {
        assert!(drafts.len() <= MAX_BATCH);
        self.batches.fetch_add(1, Ordering::Relaxed);
        let mut spots = self.spots.lock().unwrap();
        let mut done = Upserted::default();
        for draft in drafts {
            if spots.insert(draft.id, draft.clone()).as_ref() == Some(draft) {
                done.unchanged += 1;
            } else {
                done.changed += 1;
            }
        }
        Ok(done)
    }

    async fn page_after(&self, _: Option<SpotId>, _: u32) -> Result<Vec<Spot>, StoreError> {
        unreachable!("an import does not look")
    }

    async fn catalogue_was_loaded(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn mark_catalogue_loaded(&self, _: DateTime<Utc>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl RecordingStore {
    fn spot(&self, id: i64) -> SpotDraft {
        self.spots.lock().unwrap()[&SpotId::new(id)].clone()
    }
}

#[derive(Default)]
struct Notes {
    rejected: Vec<(u64, String)>,
    progress: Vec<Progress>,
}

impl Observer for Notes {
    fn rejected(&mut self, row: Rejected) {
        self.rejected.push((row.line, row.reason));
    }

    fn progressed(&mut self, progress: &Progress) {
        self.progress.push(*progress);
    }
}

async fn run(shelf: &RecordingStore, format: Format, text: &[u8]) -> (Progress, Notes) {
    let mut notes = Notes::default();
    let done = import(shelf, text, format, &SystemClock, &mut notes).await.unwrap();
    assert_eq!(done.rows, done.imported + done.unchanged + done.rejected);
    assert_eq!(done.bytes, text.len() as u64);
    assert_eq!(notes.progress.last(), Some(&done));
    (done, notes)
}

const HEADER: &str = "id,name,address,lat,lng,tags,description,phoneNumber,imageUrl\n";

#[tokio::test]
async fn good_rows_of_a_csv_are_imported_and_bad_ones_reported_by_line() {
    let rows: [&[u8]; 13] = [
        "1,경복궁,서울 종로구,37.5,126.9,역사|건축/조형,,,\n".as_bytes(),
        "2,\"여러, 줄의\n이름\",서울,37.5,126.9,역사,,,\n".as_bytes(),
        "3,남산,서울,37.5,126.9,산,,,\n".as_bytes(),
        "x,남산,서울,37.5,126.9,자연,,,\n".as_bytes(),
        "4,남산,서울,97.5,126.9,자연,,,\n".as_bytes(),
        "5,남산,서울,abc,126.9,자연,,,\n".as_bytes(),
        "6,남산,서울,37.5,126.9\n".as_bytes(),
        "7,,서울,37.5,126.9,자연,,,\n".as_bytes(),
        b"8,\xff\xfe,x,37.5,126.9,x,,,\n",
        "9,남산,서울,37.5,126.9,,,,\n".as_bytes(),
        "10,남산,서울,NaN,126.9,자연,,,\n".as_bytes(),
        "\n1,경복궁,서울 종로구 사직로,37.5,126.9,역사,\"설명\n둘째 줄\",02-1,\n".as_bytes(),
        "11,남산,서울,37.5,126.9,자연,,,".as_bytes(),
    ];
    let text = [HEADER.as_bytes(), &rows.concat()].concat();
    let shelf = RecordingStore::default();
    let (done, notes) = run(&shelf, Format::Csv, &text).await;
    let lines: Vec<_> = notes.rejected.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    let reasons: Vec<_> = notes.rejected.iter().map(|(_, reason)| reason.as_str()).collect();
    for (reason, words) in reasons.iter().zip([
        "control character",
        "unknown tag `산`",
        "id: an id is a whole number",
        "lat must be",
        "lat is not a number",
        "5 fields where the header has 9",
        "name is missing",
        "UTF-8",
        "at least one tag",
        "lat must be",
    ]) {
        assert!(reason.contains(words), "{reason} / {words}");
    }
    assert_eq!((done.rows, done.imported, done.rejected), (13, 3, 10));
    let palace = shelf.spot(1).content;
    assert_eq!(palace.address(), "서울 종로구 사직로", "the later row of an id counts");
    assert_eq!(palace.description(), Some("설명\n둘째 줄"));
    assert_eq!(palace.image_url(), None);
    assert_eq!(palace.tags().iter().collect::<Vec<_>>(), [Tag::History]);
    assert_eq!(shelf.spot(11).content.name(), "남산");
}

#[tokio::test]
async fn the_header_names_the_columns_in_any_order_and_spelling() {
    let text = "\u{feff}tags,LNG,lat,address,name,ID,extra,image_url,phone_number\r\n\
                문화,127,37,서울,극장,5,?,https://example.com/x,02-1\r\n";
    let shelf = RecordingStore::default();
    let (done, _) = run(&shelf, Format::Csv, text.as_bytes()).await;
    assert_eq!(done.imported, 1);
    let theatre = shelf.spot(5).content;
    assert_eq!((theatre.at().lat(), theatre.at().lng()), (37.0, 127.0));
    assert_eq!(theatre.image_url(), Some("https://example.com/x"));
    assert_eq!(theatre.phone_number(), Some("02-1"));
}

#[tokio::test]
async fn a_file_without_its_columns_is_refused_as_a_whole() {
    for (text, words) in [
        ("", "empty"),
        ("id,name,address,lat,lng\n1,a,b,1,2\n", "no column tags"),
        ("id,id,name,address,lat,lng,tags\n", "twice"),
        ("\"id,name\n", "header"),
    ] {
        let mut notes = Notes::default();
        let shelf = RecordingStore::default();
        let error = import(&shelf, text.as_bytes(), Format::Csv, &SystemClock, &mut notes)
            .await
            .unwrap_err();
        assert!(matches!(&error, ImportError::Header(why) if why.contains(words)), "{error}");
    }
}

#[tokio::test]
async fn good_lines_of_ndjson_are_imported_and_bad_ones_reported() {
    let text = r#"{"id":"1","name":"경복궁","address":"서울","lat":37.5,"lng":126.9,"tags":["역사","문화"]}
{"id":2,"name":"남산","address":"서울","lat":37,"lng":126.9,"tags":"자연|문화","phoneNumber":"02-1","image_url":null,"more":1}

not json
{"id":3,"name":"남산","address":"서울","lat":"37","lng":126.9,"tags":[]}
{"id":4,"name":"남산","address":"서울","lat":37,"lng":126.9}
{"id":-5,"name":"남산","address":"서울","lat":37,"lng":126.9,"tags":["자연"]}
{"id":6,"name":"남산","address":"서울","lat":37,"lng":126.9,"tags":7}"#;
    let shelf = RecordingStore::default();
    let (done, notes) = run(&shelf, Format::NdJson, text.as_bytes()).await;
    assert_eq!((done.imported, done.rejected), (2, 5));
    let lines: Vec<_> = notes.rejected.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [4, 5, 6, 7, 8]);
    assert!(notes.rejected[2].1.contains("tags is missing"), "{:?}", notes.rejected);
    assert_eq!(shelf.spot(2).content.phone_number(), Some("02-1"));
    assert_eq!(shelf.spot(1).content.tags().iter().count(), 2);
}

#[tokio::test]
async fn files_from_other_keyboards_and_systems_say_the_same() {
    let text = format!(
        "{HEADER}\u{200B}1,\u{1112}\u{1161}\u{11AB}옥\u{200B}마을,전주\u{3000}완산구,\u{A0}35.8,127.1,\
         HISTORY| rest\u{200B}|\u{110E}\u{1166}\u{1112}\u{1165}\u{11B7},\"한 줄\r\n두\t줄\u{7}\",\u{3164},\n\
         2,\u{3164},전주,35.8,127.1,REST,,,\n"
    );
    let line = r#"{"id":3,"name":"\u1112\u1161\u11ab옥\u200b마을","address":"전주","lat":35,"lng":127,"tags":["NATURE","concert"],"description":"\u0000\u3164"}"#;
    let shelf = RecordingStore::default();
    let (done, notes) = run(&shelf, Format::Csv, text.as_bytes()).await;
    assert_eq!((done.imported, done.rejected), (1, 1), "{:?}", notes.rejected);
    assert!(notes.rejected[0].1.contains("name is missing"), "{:?}", notes.rejected);
    assert_eq!(run(&shelf, Format::NdJson, line.as_bytes()).await.0.imported, 1);
    let village = shelf.spot(1).content;
    assert_eq!((village.name(), village.address()), ("한옥마을", "전주 완산구"));
    assert_eq!(village.description(), Some("한 줄\n두 줄"));
    assert_eq!(village.phone_number(), None);
    let tags = village.tags().iter().collect::<Vec<_>>();
    assert_eq!(tags, [Tag::History, Tag::Rest, Tag::Experience]);
    let same = shelf.spot(3).content;
    assert_eq!((same.name(), same.description()), (village.name(), None));
    assert_eq!(same.tags().iter().collect::<Vec<_>>(), [Tag::Nature, Tag::Performance]);
}

#[tokio::test]
async fn importing_again_changes_nothing() {
    let text =
        format!("{HEADER}1,경복궁,서울,37.5,126.9,역사,,,\n2,남산,서울,37.5,126.9,자연,,,\n");
    let shelf = RecordingStore::default();
    assert_eq!(run(&shelf, Format::Csv, text.as_bytes()).await.0.imported, 2);
    let again = run(&shelf, Format::Csv, text.as_bytes()).await.0;
    assert_eq!((again.imported, again.unchanged), (0, 2));
}

#[test]
fn the_format_follows_from_the_file_name() {
    assert_eq!(Format::of_path(Path::new("a/b.CSV")), Some(Format::Csv));
    assert_eq!(Format::of_path(Path::new("b.jsonl")), Some(Format::NdJson));
    assert_eq!(Format::of_path(Path::new("b.xlsx")), None);
    assert_eq!(Format::of_path(Path::new("b")), None);
    assert_eq!("xml".parse::<Format>(), Err(UnknownFormat));
}

/// A file that is generated while it is read; counts the bytes read.
struct Generated<'a> {
    rows: std::ops::Range<u64>,
    left: Vec<u8>,
    made: &'a AtomicU64,
}

impl AsyncRead for Generated<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.left.len() < buffer.remaining() {
            let Some(row) = self.rows.next() else { break };
            let row = format!("{row},곳 {row},서울 {row}번지,37.5,126.9,자연,,,\n");
            self.left.extend(row.into_bytes());
        }
        let length = self.left.len().min(buffer.remaining());
        let rest = self.left.split_off(length);
        buffer.put_slice(&self.left);
        self.left = rest;
        self.made.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

/// Checks how far reading is ahead of writing.
struct Ahead<'a>(&'a AtomicU64);

impl Observer for Ahead<'_> {
    fn rejected(&mut self, row: Rejected) {
        panic!("{row:?}");
    }

    fn progressed(&mut self, progress: &Progress) {
        let ahead = self.0.load(Ordering::Relaxed) - progress.bytes;
        assert!(ahead <= 512 * 1024, "{ahead} bytes are held");
    }
}

#[tokio::test]
async fn a_large_file_is_never_held_as_a_whole() {
    const ROWS: u64 = 100_000;
    let made = AtomicU64::new(0);
    let left = HEADER.as_bytes().to_vec();
    let source = Generated { rows: 0..ROWS, left, made: &made };
    let shelf = RecordingStore::default();
    let done = import(&shelf, source, Format::Csv, &SystemClock, &mut Ahead(&made)).await.unwrap();
    assert_eq!((done.rows, done.imported), (ROWS, ROWS));
    assert_eq!(done.bytes, made.load(Ordering::Relaxed));
    assert_eq!(shelf.batches.load(Ordering::Relaxed), ROWS / MAX_BATCH as u64);
}
