//! What the gateway reads again from files while it runs.
//!
//! A [`Reloadable`] is made of files and can replace itself by new contents of them. The [`Reloader`]
//! applies them when they change, and on SIGHUP. It compares contents and not times, because a mounted
//! ConfigMap changes by a link that is swapped. Contents are applied as a whole or refused as a whole: then
//! what was in use stays.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tourin_chassis::metrics::{Counters, Metrics};

/// The contents of files.
#[derive(Debug, Clone, Default, Hash)]
pub struct Contents(Vec<Vec<u8>>);

impl Contents {
    /// The content of each file, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

/// Reads files.
///
/// # Errors
/// When one of them cannot be read; the error names it.
pub fn read(files: &[PathBuf]) -> anyhow::Result<Contents> {
    let content = |file: &PathBuf| {
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
    };
    Ok(Contents(files.iter().map(content).collect::<anyhow::Result<_>>()?))
}

/// A part of the gateway that can be replaced while it runs.
pub trait Reloadable: Send + Sync {
    /// Its name in the log, in metrics and on the operators' page.
    fn name(&self) -> &'static str;

    /// The files that it is made of. Without files it is applied on SIGHUP alone.
    fn files(&self) -> &[PathBuf];

    /// Checks the contents of its files and uses them from now on. Returns their version.
    ///
    /// # Errors
    /// What is wrong, with the file and the line. What was in use must be unchanged then.
    fn apply(&self, contents: &Contents) -> anyhow::Result<String>;
}

/// The state of a [`Reloadable`], for operators.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadState {
    /// Its name.
    pub name: &'static str,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// The version in use; `None` before the first reload.
    pub version: Option<String>,
    /// Since when it is in use; `None` before the first reload.
    pub applied_at: Option<DateTime<Utc>>,
    /// Why newer contents are not used, if they are not.
    pub refused: Option<Refused>,
}

/// Contents that were refused.
#[derive(Debug, Clone, Serialize)]
pub struct Refused {
    /// When.
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
}

/// What was found in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Their hash, by [`Reloader::hasher`].
    Contents(u64),
    Unreadable(String),
}

struct Part {
    what: Arc<dyn Reloadable>,
    in_use: Seen,
    /// What was applied or refused last.
    judged: Seen,
    /// What the last look found.
    found: Seen,
}

/// The states of all parts. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ReloadStates(Arc<Mutex<Vec<ReloadState>>>);

impl ReloadStates {
    /// The states now.
    pub fn all(&self) -> Vec<ReloadState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, what: &dyn Reloadable) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ReloadState {
            name: what.name(),
            files: what.files().to_vec(),
            version: None,
            applied_at: None,
            refused: None,
        });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut ReloadState)) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.iter_mut().find(|state| state.name == name) {
            change(state);
        }
    }
}

/// Applies files when they change, and on SIGHUP.
pub struct Reloader {
    parts: Vec<Part>,
    /// Pause between two looks at the files.
    interval: Duration,
    /// Keyed at random. SHA-256 of a table of 5,000 routes cost as much as a hundred requests, at each look.
    hasher: RandomState,
    reloads: Counters<2>,
    states: ReloadStates,
}

impl Reloader {
    /// A reloader without parts, which looks at files every `interval`.
    pub fn new(interval: Duration, metrics: &Metrics) -> Self {
        let reloads = metrics.counters(
            "tourin_gateway_reloads",
            "Files that were read again while the gateway ran, by what they are and what became of it",
        );
        let states = ReloadStates::default();
        let read = states.clone();
        metrics.gauges_read(
            "tourin_gateway_reload_refused",
            "1 while a file on the disk is refused and what was in use before stays",
            move || {
                let states = read.all().into_iter();
                let labelled = |state: ReloadState| {
                    let refused = f64::from(u8::from(state.refused.is_some()));
                    (vec![("what", state.name.to_owned())], refused)
                };
                states.map(labelled).collect()
            },
        );
        Self { parts: Vec::new(), interval, hasher: RandomState::new(), reloads, states }
    }

    /// Reloads `what`, which is in use with `contents`.
    pub fn add(&mut self, what: Arc<dyn Reloadable>, contents: &Contents) {
        for result in ["applied", "refused"] {
            self.reloads.of([("what", what.name()), ("result", result)]);
        }
        self.states.add(&*what);
        let in_use = Seen::Contents(self.hasher.hash_one(contents));
        self.parts.push(Part { what, judged: in_use.clone(), found: in_use.clone(), in_use });
    }

    /// The states of its parts.
    pub fn states(&self) -> ReloadStates {
        self.states.clone()
    }

    /// Receives SIGHUP from now on, if there is anything to reload: otherwise the signal ends the process
    /// as usual. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the operating system refuses to install a signal handler.
    pub fn hang_ups(&self) -> anyhow::Result<Option<Signal>> {
        if self.parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?))
    }

    /// Reloads until `stop`.
    pub async fn run(mut self, mut hang_ups: Option<Signal>, stop: CancellationToken) {
        if self.parts.is_empty() {
            return stop.cancelled().await;
        }
        loop {
            let hang_up = async {
                match &mut hang_ups {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hang_up => true,
                () = tokio::time::sleep(self.interval) => false,
            };
            // Files may be on a slow disk.
            let looked = tokio::task::spawn_blocking(move || {
                self.look(is_asked);
                self
            });
            match looked.await {
                Ok(reloader) => self = reloader,
                Err(error) => {
                    tracing::error!(%error, "a reload panicked");
                    return;
                }
            }
        }
    }

    /// Looks at the files. `is_asked` by SIGHUP; otherwise contents count when two looks in a row find
    /// them, so that a file that is being written is not taken for a whole one.
    fn look(&mut self, is_asked: bool) {
        for part in &mut self.parts {
            let contents = read(part.what.files());
            let found = match &contents {
                Ok(contents) => Seen::Contents(self.hasher.hash_one(contents)),
                Err(error) => Seen::Unreadable(format!("{error:#}")),
            };
            let is_steady = found == part.found;
            part.found = found.clone();
            let is_due = if is_asked {
                found != part.in_use || part.what.files().is_empty()
            } else {
                is_steady && found != part.judged
            };
            if !is_due {
                continue;
            }
            part.judged = found.clone();
            let name = part.what.name();
            match contents.and_then(|contents| part.what.apply(&contents)) {
                Ok(version) => {
                    part.in_use = found;
                    self.reloads.of([("what", name), ("result", "applied")]).increase();
                    tracing::info!(what = name, version, "reloaded");
                    self.states.change(name, |state| {
                        state.version = Some(version);
                        state.applied_at = Some(Utc::now());
                        state.refused = None;
                    });
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    self.reloads.of([("what", name), ("result", "refused")]).increase();
                    tracing::error!(what = name, reason, "not reloaded; what was in use stays");
                    let refused = Refused { at: Utc::now(), reason };
                    self.states.change(name, |state| state.refused = Some(refused));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses contents that are not `bad`.
    struct Word {
        files: Vec<PathBuf>,
        in_use: Mutex<Vec<String>>,
    }

    impl Reloadable for Word {
        fn name(&self) -> &'static str {
            "word"
        }
        fn files(&self) -> &[PathBuf] {
            &self.files
        }
        fn apply(&self, contents: &Contents) -> anyhow::Result<String> {
            let words = contents.iter().map(|word| String::from_utf8(word.to_vec()));
            let words = words.collect::<Result<Vec<_>, _>>()?.join(" ");
            anyhow::ensure!(!words.contains("bad"), "{words} is bad");
            self.in_use.lock().unwrap().push(words.clone());
            Ok(words)
        }
    }

    fn reloader(files: Vec<PathBuf>) -> (Reloader, Arc<Word>, Metrics) {
        let metrics = Metrics::new("gateway");
        let mut reloader = Reloader::new(Duration::from_secs(1), &metrics);
        let word = Arc::new(Word { in_use: Mutex::default(), files });
        reloader.add(Arc::clone(&word) as _, &read(&word.files).unwrap());
        (reloader, word, metrics)
    }

    #[test]
    fn contents_are_applied_once_they_are_steady() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = ["a", "b"].map(|name| folder.path().join(name)).into();
        let write = |[a, b]: [&str; 2]| {
            std::fs::write(&files[0], a).unwrap();
            std::fs::write(&files[1], b).unwrap();
        };
        write(["one", "two"]);
        let (mut reloader, word, metrics) = reloader(files.clone());
        let mut looks = |asked: &[bool]| {
            asked.iter().for_each(|is_asked| reloader.look(*is_asked));
            (std::mem::take(&mut *word.in_use.lock().unwrap()), reloader.states().all()[0].clone())
        };
        assert!(looks(&[false, false, true]).0.is_empty(), "nothing has changed");
        write(["half", "two"]);
        assert!(looks(&[false]).0.is_empty(), "it may be half written");
        write(["one", "three"]);
        assert!(looks(&[false]).0.is_empty());
        assert_eq!(looks(&[false, false]).0, ["one three"]);
        // Refused once, and the old one stays.
        write(["bad", "three"]);
        let (applied, state) = looks(&[false, false, false, false]);
        assert!(applied.is_empty());
        assert_eq!(state.refused.unwrap().reason, "bad three is bad");
        assert_eq!(state.version.as_deref(), Some("one three"));
        let text = metrics.render();
        for line in [
            r#"tourin_gateway_reloads_total{what="word",result="applied"} 1"#,
            r#"tourin_gateway_reloads_total{what="word",result="refused"} 1"#,
            r#"tourin_gateway_reload_refused{what="word"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        // SIGHUP waits for nothing, and tries again.
        assert!(looks(&[true]).1.refused.is_some());
        write(["good", "three"]);
        let (applied, state) = looks(&[true]);
        assert_eq!(applied, ["good three"]);
        assert!(state.refused.is_none());
        // A file that is gone is named once.
        std::fs::remove_file(&files[1]).unwrap();
        let (applied, state) = looks(&[false, false, false]);
        let reason = state.refused.unwrap().reason;
        assert!(applied.is_empty() && reason.contains(&files[1].display().to_string()), "{reason}");
        // What is in use comes back.
        write(["good", "three"]);
        let (applied, state) = looks(&[false, false]);
        assert_eq!((applied.len(), state.refused.is_none()), (1, true));
    }

    #[test]
    fn without_files_it_is_applied_on_sighup_alone() {
        let (mut reloader, word, _) = reloader(Vec::new());
        for is_asked in [false, false, true, false, true] {
            reloader.look(is_asked);
        }
        assert_eq!(word.in_use.lock().unwrap().len(), 2);
    }
}
