//! MariaDB becomes unreachable under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tourin_testbed::{Bed, Server, StopSignal, eventually_within};

use super::running::{RECOVERY, Running, person, settings};

/// Members who place bookmarks concurrently.
const MEMBERS: u64 = 8;
/// The built-in catalogue has at least this many spots.
const SPOTS: u64 = 40;

/// Counts the responses.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
    /// Neither success nor 503 with `Retry-After`: status, path, body.
    wrong: std::sync::Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Tally {
    async fn note(&self, what: &str, answer: reqwest::Response) -> bool {
        let status = answer.status().as_u16();
        let may_retry = answer.headers().contains_key("retry-after");
        match status {
            200 | 201 => _ = self.done.fetch_add(1, Ordering::SeqCst),
            503 if may_retry => _ = self.refused.fetch_add(1, Ordering::SeqCst),
            _ => {
                let body = answer.text().await.unwrap_or_default();
                self.wrong.lock().unwrap().push(format!("{what}: {status} {body}"));
            }
        }
        status == 201
    }

    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        eventually_within(RECOVERY, what, async || reached(self)).await;
    }
}

fn name(member: u64) -> String {
    format!("member000{member}")
}

/// Places bookmarks one after the other, each until it is acknowledged, in a loop.
async fn place(core: Arc<Running>, tally: Arc<Tally>, member: u64) -> u64 {
    let mut acknowledged = 0;
    while !tally.over.load(Ordering::SeqCst) {
        let spot = acknowledged % SPOTS + 1;
        let answer = core.bookmark(&name(member), spot).await;
        if tally.note("bookmark", answer).await {
            acknowledged += 1;
            // Slow enough that the server goes down before the end.
            sleep(Duration::from_millis(20)).await;
        }
    }
    acknowledged
}

async fn look(core: Arc<Running>, tally: Arc<Tally>) {
    let paths = ["/api/tour-spots?query=%EA%B6%81", "/api/tour-spots/1", "/api/users"];
    for path in paths.iter().cycle() {
        if tally.over.load(Ordering::SeqCst) {
            return;
        }
        let answer = core.client.get(core.url(path)).send().await.unwrap();
        tally.note(path, answer).await;
    }
}

async fn outage(core: &Running, tally: &Tally, bed: &Bed, signal: StopSignal) {
    let before = tally.refused.load(Ordering::SeqCst);
    bed.stop(Server::Mysql, signal).await;
    tally.until("a refusal", |tally| tally.refused.load(Ordering::SeqCst) > before).await;
    let unready = core.until_status("/readyz", 503).await;
    assert!(unready["unready"]["database"].is_string(), "{unready}");
    assert_eq!(core.get("/healthz").await.0, 200, "the process is well");

    bed.start(Server::Mysql).await;
    core.until_status("/readyz", 200).await;
    let done = tally.done.load(Ordering::SeqCst);
    tally.until("work", |tally| tally.done.load(Ordering::SeqCst) > done + 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_restarts_under_load_loses_nothing_and_doubles_nothing() {
    let bed = Bed::with(&[Server::Mysql]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &[]);
    settings.database.server.mysql_url = Some(bed.url(Server::Mysql).parse().unwrap());
    let core = Arc::new(Running::start(settings).await);
    for member in 0..MEMBERS {
        assert_eq!(core.post("/api/auth/signup", person(&name(member))).await.0, 201);
    }
    let spots = core.get("/api/tour-spots?pageSize=100").await.1.as_array().unwrap().len();
    assert!(spots as u64 >= SPOTS, "{spots}");

    let tally = Arc::new(Tally::default());
    let placing: Vec<_> = (0..MEMBERS)
        .map(|member| tokio::spawn(place(core.clone(), tally.clone(), member)))
        .collect();
    let looking: Vec<_> = (0..4).map(|_| tokio::spawn(look(core.clone(), tally.clone()))).collect();
    tally.until("work", |tally| tally.done.load(Ordering::SeqCst) > 50).await;
    outage(&core, &tally, &bed, StopSignal::Kill).await;
    outage(&core, &tally, &bed, StopSignal::Term).await;
    tally.over.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for task in placing {
        acknowledged.push(task.await.unwrap());
    }
    for task in looking {
        task.await.unwrap();
    }
    let wrong = std::mem::take(&mut *tally.wrong.lock().unwrap());
    assert!(
        wrong.is_empty(),
        "{} answers, such as {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );

    // Each acknowledged bookmark exists, and each bookmark has one event.
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (member, spot) in core.bookmark_events().await {
        events.entry(member).or_default().push(spot);
    }
    for (member, acknowledged) in (0..MEMBERS).zip(acknowledged) {
        let path = format!("/api/users/{}/bookmarks?pageSize=100", name(member));
        let stored = core.get(&path).await.1;
        let mut stored: Vec<String> = stored
            .as_array()
            .unwrap()
            .iter()
            .map(|bookmark| bookmark["tourSpotId"].as_str().unwrap().to_owned())
            .collect();
        for spot in 1..=acknowledged.min(SPOTS) {
            assert!(stored.contains(&spot.to_string()), "{} lost {spot}", name(member));
        }
        let mut told = events.remove(&name(member)).unwrap_or_default();
        told.sort_unstable();
        stored.sort_unstable();
        assert_eq!(told, stored, "{}: one event for each bookmark", name(member));
    }
    let core = Arc::into_inner(core).unwrap();
    assert!(core.stop().await < Duration::from_secs(12));
    bed.remove().await;
}
