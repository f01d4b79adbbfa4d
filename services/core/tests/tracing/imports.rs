//! An import of any size is one trace of bounded size.

use std::fmt::Write as _;

use tourin_chassis::clock::SystemClock;
use tourin_chassis::telemetry::testing::all_spans;
use tourin_core::app::import::{Format, Observer, Progress, Rejected, import, import_span};
use tourin_core::{open_outbox, open_spots};
use tourin_shared_events::outbox::{SHARDS, Shard};
use tourin_shared_events::trace::BULK;

const FIRST_BATCH: usize = 1_000;
const ROWS: usize = FIRST_BATCH + 100;

struct NoProgress;

impl Observer for NoProgress {
    fn rejected(&mut self, row: Rejected) {
        panic!("{row:?}");
    }

    fn progressed(&mut self, _: &Progress) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_is_one_trace_that_shows_the_events_of_its_first_batch() {
    all_spans();
    let folder = tempfile::tempdir().unwrap();
    let store = open_spots(folder.path()).await.unwrap();
    let mut csv = String::from("id,name,address,lat,lng,tags\n");
    for id in 1..=ROWS {
        writeln!(csv, "{id},곳 {id},강릉시,37.7,128.9,자연").unwrap();
    }
    let span = import_span("import");
    let trace = span.trace_id().unwrap();
    let mut quiet = NoProgress;
    let importing = import(&store, csv.as_bytes(), Format::Csv, &SystemClock, &mut quiet);
    let done = span.run(importing).await.unwrap();
    assert_eq!(done.imported, ROWS as u64);

    let outbox = open_outbox(folder.path()).await.unwrap();
    let shards: Vec<Shard> = (0..SHARDS).collect();
    let waiting = outbox.pending(&shards, 0, 10_000).await.unwrap();
    assert_eq!(waiting.len(), ROWS);
    let (mut shown, mut others) = (0, 0);
    for row in waiting {
        let headers = row.event.headers;
        let parent: Vec<&str> = headers["traceparent"].split('-').collect();
        assert_eq!(parent[1], trace);
        match (parent[3], headers.contains_key(BULK)) {
            ("01", false) => shown += 1,
            ("00", true) => others += 1,
            wrong => panic!("{wrong:?}: {headers:?}"),
        }
    }
    assert_eq!((shown, others), (FIRST_BATCH, ROWS - FIRST_BATCH));
}
