//! How long a bookmark takes from its answer until the trend has it, at a set rate, through the
//! gateway of an all-in-one on real servers. Run it by `deploy/bench.sh bookmark-to-trend`.

#[path = "bookmark_to_trend/members.rs"]
mod members;
#[path = "bookmark_to_trend/mesh.rs"]
mod mesh;
#[path = "bookmark_to_trend/watch.rs"]
mod watch;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tourin_bench::quantile;

use crate::members::Member;
use crate::mesh::Mesh;
use crate::watch::Watch;

/// Measures how fresh the trend is.
#[derive(Debug, Parser)]
struct Settings {
    /// The `tourin` program; it takes its servers from the environment
    #[arg(long, value_name = "FILE")]
    tourin: PathBuf,
    /// Bookmarks per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 200)]
    rate: u32,
    /// Seconds
    #[arg(long, value_name = "S", default_value_t = 20)]
    duration_s: u32,
    /// Members, who bookmark in turn
    #[arg(long, value_name = "N", default_value_t = 20)]
    members: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let mesh = Mesh::start(&settings.tourin).await?;
    let spots = mesh.spots().await?;
    let members = members::sign_up(&mesh, settings.members).await?;
    let bookmarks = usize::try_from(settings.rate * settings.duration_s)?;
    anyhow::ensure!(
        bookmarks <= spots.len() * members.len(),
        "{} members and {} spots make fewer than {bookmarks} bookmarks: say --members",
        members.len(),
        spots.len()
    );

    let watch = Arc::new(Watch::new(&mesh, &spots).await?);
    let watching = tokio::spawn(watch.clone().run());
    let mut ticks = interval(Duration::from_secs(1) / settings.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    for number in 0..bookmarks {
        ticks.tick().await;
        // Each spot in turn: by its next turn the last bookmark has long been seen. Each by another member:
        // a member's own events wait for each other.
        let (turn, place) = (number / spots.len(), number % spots.len());
        let spot = spots[place].clone();
        let member: Member = members[(turn + place) % members.len()].clone();
        let watch = watch.clone();
        requests.spawn(async move {
            let answered = member.bookmark(&spot).await;
            if answered {
                watch.expect(spot);
            }
            answered
        });
    }
    let answered = requests.join_all().await.into_iter().filter(|answered| *answered).count();
    let mut seen = watch.finish(Duration::from_secs(10)).await;
    watching.abort();

    let in_ms = |value: Option<Duration>| value.unwrap_or_default().as_secs_f64() * 1e3;
    writeln!(
        std::io::stdout(),
        "{bookmarks} bookmarks at {} /s: {answered} answered, {} seen in the trend; answered to seen p50 {:.1} ms, \
         p99 {:.1} ms, max {:.1} ms (bound: p99 250 ms)",
        settings.rate,
        seen.len(),
        in_ms(quantile(&mut seen, 0.5)),
        in_ms(quantile(&mut seen, 0.99)),
        in_ms(quantile(&mut seen, 1.0)),
    )?;
    anyhow::ensure!(
        answered == bookmarks && seen.len() == answered,
        "bookmarks failed or were lost"
    );
    mesh.stop().await
}
