//! Polls the trend for the effects of acknowledged bookmarks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::Client;
use serde_json::Value;
use tokio::time::sleep;
use tourin_chassis::http_client;

use crate::mesh::Mesh;

/// Half of a bookmark's weight: a larger rise of a score is a bookmark.
const RISE: f64 = 1.0;
const RECOMMENDATION: &str = "recommendation";
/// The pause between two polls.
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub struct Watch {
    http: Client,
    url: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last score of each spot that a bookmark is expected for.
    scores: HashMap<String, f64>,
    /// Acknowledged bookmarks that are not in the trend yet.
    expected: HashMap<String, Instant>,
    seen: Vec<Duration>,
}

impl Watch {
    pub async fn new(mesh: &Mesh, spots: &[String]) -> anyhow::Result<Self> {
        let snapshot = mesh.operator.registry.list(Some(RECOMMENDATION)).await?;
        let instance = snapshot.instances.first().context("an instance")?;
        // An operator may ask for scores.
        let tls = mesh.operator.workload.client_config(RECOMMENDATION)?;
        let watch = Self {
            http: http_client::mesh_client(tls, Duration::from_secs(10))?,
            url: format!("{}/internal/trend/scores", instance.base_url()),
            state: Mutex::default(),
        };
        let scores = watch.look(spots).await?;
        watch.change(|state| state.scores = scores);
        Ok(watch)
    }

    /// A bookmark of this spot was acknowledged now.
    pub fn expect(&self, spot: String) {
        self.change(|state| state.expected.insert(spot, Instant::now()));
    }

    /// Polls until it is aborted.
    pub async fn run(self: Arc<Self>) {
        loop {
            let spots: Vec<String> = self.change(|state| state.expected.keys().cloned().collect());
            if !spots.is_empty()
                && let Ok(scores) = self.look(&spots).await
            {
                let now = Instant::now();
                self.change(|state| state.see(&scores, now));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// How long each bookmark took, once all have been seen or the time is over.
    pub async fn finish(&self, limit: Duration) -> Vec<Duration> {
        let deadline = Instant::now() + limit;
        while !self.change(|state| state.expected.is_empty()) && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
        self.change(|state| std::mem::take(&mut state.seen))
    }

    async fn look(&self, spots: &[String]) -> anyhow::Result<HashMap<String, f64>> {
        let answer: Value = self
            .http
            .get(format!("{}?ids={}", self.url, spots.join(",")))
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        let scores = answer["scores"].as_object().context("scores")?;
        Ok(scores
            .iter()
            .filter_map(|(spot, value)| Some((spot.clone(), value.as_f64()?)))
            .collect())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn see(&mut self, scores: &HashMap<String, f64>, now: Instant) {
        for (spot, score) in scores {
            let before = self.scores.get(spot).copied().unwrap_or(0.0);
            if *score > before + RISE
                && let Some(answered) = self.expected.remove(spot)
            {
                self.seen.push(now.saturating_duration_since(answered));
                self.scores.insert(spot.clone(), *score);
            }
        }
    }
}
