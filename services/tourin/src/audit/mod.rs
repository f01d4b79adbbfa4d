//! `tourin audit`: checks that a mesh neither loses nor repeats a write.
//!
//! The audit's own members place and remove bookmarks and write and delete reviews, at a set rate
//! through one or more gateways. Afterwards the audit checks that every acknowledged write is in the
//! store, that each has had its effect in the trend and in the recommendation service's replica once,
//! and that there are no other effects.
//!
//! It reads lists alone, because a spot's own page would be a view. Spots are chosen at random. Those
//! whose score moves before the start are left out, because other traffic looks like an unexpected
//! effect. The clocks of audit and mesh may differ by as much as it takes the trend to decay by a
//! quarter of a view.

pub mod backlog;
pub mod comparison;
pub mod gateways;
pub mod ledger;
pub mod members;
pub mod observation;
pub mod report;
pub mod schedule;
mod settings;
pub mod settling;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::seq::SliceRandom;
use tokio::sync::watch;
use tourin_chassis::shutdown::Shutdown;

use comparison::{Comparison, Observed, compare};
use gateways::Gateways;
use ledger::SpotId;
use observation::{Observer, Scores};
use report::Report;
use schedule::LoadGenerator;
pub use settings::AuditSettings;
pub(crate) use settings::duration;
use settling::{Progress, Sample, Settling, WaitOutcome};

/// Maximum number of spots that are considered.
const CATALOGUE: usize = 5_000;
/// Spots that are observed and not written about.
const UNTOUCHED: usize = 50;
/// Time between the two readings of scores that show other traffic (milliseconds).
const SCORE_INTERVAL_MS: u64 = 500;
const SETTLE_POLL_MS: u64 = 500;
const LOG_EVERY_MS: u64 = 5_000;
/// Everything must agree twice, this much apart (milliseconds): a broker's second deliveries come late.
const CONFIRM_AFTER_MS: u64 = 2_000;

/// An audit whose members are ready to begin.
#[derive(Debug)]
pub struct Audit {
    settings: AuditSettings,
    load: Arc<LoadGenerator>,
    observer: Observer,
    spots: Vec<SpotId>,
    before: Scores,
    notes: Vec<String>,
    progress: watch::Sender<Progress>,
}

impl Audit {
    /// Chooses spots, reads their scores, and signs members up.
    ///
    /// # Errors
    /// When the mesh is unreachable, has too few spots, or does not accept the join token.
    pub async fn prepare(settings: AuditSettings) -> anyhow::Result<Self> {
        let timeout = Duration::from_millis(settings.request_timeout_ms);
        let gateways = Gateways::new(&settings.gateways, settings.tries, timeout)?;
        let observer = Observer::new(&settings.mesh, settings.mesh_file.as_deref()).await?;
        let catalogue = observation::catalogue(&gateways, CATALOGUE).await.with_context(|| {
            format!("no tour spots at {}: is a mesh running there?", settings.gateways.join(", "))
        })?;
        let mut notes = Vec::new();
        let (mut quiet, before) = quiet_spots(&observer, catalogue, &mut notes).await?;
        quiet.shuffle(&mut rand::rng());
        let own = own_spots(&settings, quiet.len(), &mut notes)?;
        quiet.truncate(own + UNTOUCHED);
        let before = restricted(before, &quiet);
        let members = members::sign_up(&gateways, settings.members).await?;
        // The members' number is random: so is the run's.
        let run = members.first().map(|member| member.id.clone()).unwrap_or_default();
        let load = Arc::new(LoadGenerator::new(gateways, members, quiet[..own].to_vec(), run));
        let progress = watch::Sender::default();
        Ok(Self { settings, load, observer, spots: quiet, before, notes, progress })
    }

    /// The audit's members.
    pub fn members(&self) -> Vec<String> {
        self.load.members.iter().map(|member| member.id.clone()).collect()
    }

    /// The spots that its members write about.
    pub fn touched(&self) -> &[SpotId] {
        &self.load.spots
    }

    /// The spots whose scores it observes: the touched ones, and some untouched ones.
    pub fn watched(&self) -> &[SpotId] {
        &self.spots
    }

    /// Requests made so far.
    pub fn requests_made(&self) -> u64 {
        self.load.stats().requests
    }

    /// Makes the requests, and waits for their answers.
    ///
    /// # Errors
    /// When a request's task fails, which none should.
    pub async fn drive(&self, stop: &Shutdown) -> anyhow::Result<()> {
        let AuditSettings { rate, in_flight, .. } = self.settings;
        self.load.run(self.settings.requests(), rate, in_flight, stop).await
    }

    /// The progress of the wait for effects.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits until the mesh shows what was done, or no more effects can come, and reports. See
    /// [`settling`].
    pub async fn conclude(&self) -> Report {
        let start = Instant::now();
        let mut until = backlog::DrainCheck::now();
        let mut settling = Settling::new(self.settings.settle, self.settings.max_wait);
        let (outcome, seen) = loop {
            // The backlog first: an event that has left it has had its effect by the observation.
            let backlog = self.observer.backlog(&mut until).await;
            let seen = self.observe().await;
            if let Err(error) = &backlog {
                tracing::debug!(error = format!("{error:#}"), "the backlog cannot be read");
            }
            let sample = Sample {
                elapsed: start.elapsed(),
                backlog: backlog.ok(),
                seen: seen.as_ref().ok(),
            };
            let outcome = settling.sample(sample);
            self.progress.send_replace(settling.progress());
            if let Some(outcome) = outcome {
                break (outcome, seen);
            }
            let agrees = seen.is_ok_and(|comparison| comparison.differences.is_empty());
            let pause = if agrees { CONFIRM_AFTER_MS } else { SETTLE_POLL_MS };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        };
        let (mut comparison, unseen) = match seen {
            Ok(comparison) => (comparison, None),
            Err(error) => (Comparison::default(), Some(format!("{error:#}"))),
        };
        settling.mark_late(&mut comparison);
        if matches!(outcome, WaitOutcome::Stalled | WaitOutcome::OutOfTime) {
            comparison.mark_waiting();
        }
        let traffic = self.load.gateways.traffic();
        Report {
            comparison,
            stats: self.load.stats().clone(),
            failed_attempts: traffic.failures(),
            retries: traffic.retries(),
            settled_in: settling.settled_in(),
            outcome,
            backlog: settling.progress().backlog,
            due_in: self.settings.settle,
            late_by: settling.late_by(),
            unseen,
            notes: self.notes.clone(),
        }
    }

    async fn observe(&self) -> anyhow::Result<Comparison> {
        let members = self.members();
        let touched: BTreeSet<SpotId> = self.load.spots.iter().copied().collect();
        let store = observation::store(&self.load.gateways, &members, &touched).await?;
        let mut observed = Observed { store, ..Observed::default() };
        for (instance, address) in self.observer.instances().await? {
            let effects = self.observer.effects(address, &self.spots, &members).await;
            let effects = effects.with_context(|| format!("effects at {instance}"))?;
            observed.effects.insert(instance, effects);
        }
        Ok(compare(&self.load.ledger(), &self.before, &observed))
    }
}

/// `tourin audit`: audits and prints the report. Exit code 1 with differences, 3 when they may be late
/// effects.
///
/// # Errors
/// When the audit cannot begin.
pub async fn run_and_print(settings: AuditSettings, stop: &Shutdown) -> anyhow::Result<ExitCode> {
    let audit = Audit::prepare(settings).await?;
    audit.drive(stop).await?;
    let report = tokio::select! {
        report = audit.conclude() => report,
        never = log_progress(audit.progress()) => match never {},
        () = stop.begun() => {
            tracing::error!("stopped before the comparison");
            return Ok(ExitCode::FAILURE);
        }
    };
    write!(std::io::stdout(), "{report}").context("cannot write to standard output")?;
    Ok(report.exit_code())
}

async fn log_progress(progress: watch::Receiver<Progress>) -> Infallible {
    let mut ticks = tokio::time::interval(Duration::from_millis(LOG_EVERY_MS));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Progress { elapsed, is_overdue, differences, backlog } = *progress.borrow();
        let waiting = backlog.map_or_else(|| "not known".to_owned(), |backlog| backlog.to_string());
        let seconds = elapsed.as_secs();
        tracing::info!(seconds, is_overdue, differences, waiting, "waiting for effects");
    }
}

/// The spots without other traffic, and their scores.
async fn quiet_spots(
    observer: &Observer,
    mut spots: Vec<SpotId>,
    notes: &mut Vec<String>,
) -> anyhow::Result<(Vec<SpotId>, Scores)> {
    let instances = observer.instances().await.context("cannot find what to audit")?;
    let Some((_, address)) = instances.first() else {
        bail!("no instance of the recommendation service is registered");
    };
    let first = observer.scores(*address, &spots).await.context("cannot look at effects")?;
    tokio::time::sleep(Duration::from_millis(SCORE_INTERVAL_MS)).await;
    let again = observer.scores(*address, &spots).await.context("cannot look at effects")?;
    let known = spots.len();
    let tolerance = again.weights.view.min(again.weights.bookmark) / 4.0;
    spots.retain(|spot| {
        let kept = first.of(*spot) * again.decay(first.at);
        (again.of(*spot) - kept).abs() <= tolerance
    });
    if spots.len() < known {
        notes.push(format!("{} spots have other traffic and are left out", known - spots.len()));
    }
    Ok((spots, again))
}

/// How many of the `quiet` spots the members write about: enough for the bookmarks, with some left
/// untouched.
fn own_spots(
    settings: &AuditSettings,
    quiet: usize,
    notes: &mut Vec<String>,
) -> anyhow::Result<usize> {
    let needed = schedule::bookmarks_in(settings.requests()).div_ceil(u64::from(settings.members));
    let needed = usize::try_from(needed).unwrap_or(usize::MAX);
    let there = quiet - quiet.min(UNTOUCHED).min(quiet / 4);
    if there == 0 {
        bail!("the catalogue has no tour spots for an audit: `tourin import` some");
    }
    if needed > there {
        notes.push(format!(
            "bookmarks end after {} of about {}: each member bookmarks each of {there} spots once; \
             more --members make more",
            there * usize::from(settings.members),
            needed * usize::from(settings.members),
        ));
    }
    Ok(needed.min(there))
}

fn restricted(mut scores: Scores, spots: &[SpotId]) -> Scores {
    let spots: BTreeSet<SpotId> = spots.iter().copied().collect();
    scores.scores.retain(|spot, _| spots.contains(spot));
    scores
}
