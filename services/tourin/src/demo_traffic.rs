//! `tourin demo-traffic`: members who browse and bookmark, through the gateway.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tourin_chassis::http_client::{self, CallError};
use tourin_chassis::shutdown::Shutdown;

use crate::GATEWAY_URL;

/// How many spots the members choose from, by Zipf's law so that there is a trend.
const SPOTS: usize = 100;
const BOOKMARK_CHANCE: f64 = 0.2;
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// The longest response, in bytes.
const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// Settings of the demo's traffic.
#[derive(Debug, Clone, Args)]
pub struct DemoTrafficSettings {
    /// The gateway's URL
    #[arg(
        long,
        env = "TOURIN_GATEWAY_URL",
        value_name = "URL",
        default_value = GATEWAY_URL
    )]
    pub gateway: String,
    /// How many members browse at once
    #[arg(long, env = "TOURIN_DEMO_MEMBERS", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub members: u16,
    /// Visits per second, all members together; a visit is two or three requests. A gateway refuses more
    /// than 3,000 visits a minute from one address
    #[arg(long, env = "TOURIN_DEMO_RATE", value_name = "PER_SECOND", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Seconds to run
    #[arg(long, env = "TOURIN_DEMO_DURATION_S", value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub duration_s: u64,
    /// Seed of the members' choices; the same seed makes the same choices
    #[arg(long, env = "TOURIN_DEMO_SEED", value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
}

/// Counts of the traffic.
#[derive(Debug, Default)]
pub struct TrafficStats {
    views: AtomicU64,
    bookmarks: AtomicU64,
    recommendations: AtomicU64,
    failures: AtomicU64,
}

impl TrafficStats {
    /// Spots looked at.
    pub fn views(&self) -> u64 {
        self.views.load(Ordering::Relaxed)
    }
    /// Spots bookmarked.
    pub fn bookmarks(&self) -> u64 {
        self.bookmarks.load(Ordering::Relaxed)
    }
    /// Recommendations read.
    pub fn recommendations(&self) -> u64 {
        self.recommendations.load(Ordering::Relaxed)
    }
    /// Calls that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// `tourin demo-traffic`: makes the traffic and prints its counts; exit code 1 when a call failed.
///
/// # Errors
/// As [`run`].
pub async fn run_and_print(
    settings: &DemoTrafficSettings,
    stop: &Shutdown,
) -> anyhow::Result<ExitCode> {
    let stats = run(settings, stop).await?;
    writeln!(
        std::io::stdout(),
        "{} views, {} bookmarks, {} recommendations read, {} failed",
        stats.views(),
        stats.bookmarks(),
        stats.recommendations(),
        stats.failures(),
    )?;
    Ok(if stats.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the traffic until its time is over or `stop` begins.
///
/// # Errors
/// When the gateway is unreachable, has no spots, or lets no member sign up. Single failures later
/// are counted, not returned.
pub async fn run(
    settings: &DemoTrafficSettings,
    stop: &Shutdown,
) -> anyhow::Result<Arc<TrafficStats>> {
    let client = http_client::client(Duration::from_millis(REQUEST_TIMEOUT_MS))?;
    let gateway = settings.gateway.trim_end_matches('/').to_owned();
    let spots = Arc::new(spots(&client, &gateway).await?);
    let stats = Arc::new(TrafficStats::default());
    let pause = Duration::from_secs(1) * u32::from(settings.members) / settings.rate;
    let until = tokio::time::Instant::now() + Duration::from_secs(settings.duration_s);

    let mut members = tokio::task::JoinSet::new();
    for number in 0..settings.members {
        let mut rng = StdRng::seed_from_u64(settings.seed.wrapping_add(u64::from(number)));
        let member = Member::sign_up(&client, &gateway, &mut rng).await?;
        let (spots, stats, stop) = (spots.clone(), stats.clone(), stop.clone());
        members.spawn(async move {
            let mut ticks = tokio::time::interval(pause.max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => member.act(&spots, &stats, &mut rng).await,
                    () = tokio::time::sleep_until(until) => break,
                    () = stop.begun() => break,
                }
            }
        });
    }
    while let Some(ended) = members.join_next().await {
        ended.context("a member's task failed")?;
    }
    Ok(stats)
}

async fn spots(client: &Client, gateway: &str) -> anyhow::Result<Vec<String>> {
    let url = format!("{gateway}/api/tour-spots?pageSize={SPOTS}");
    let response = send(client.get(&url)).await.with_context(|| {
        format!("no gateway at {gateway}: start one with `tourin up`, or name it with --gateway")
    })?;
    let list: Value = http_client::json_of(&response).with_context(|| format!("GET {url}"))?;
    let ids: Vec<String> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|spot| spot["id"].as_str().map(ToOwned::to_owned))
        .collect();
    if ids.is_empty() {
        bail!(
            "the gateway at {gateway} has no tour spots: start the mesh without --no-demo, or `tourin import` some"
        );
    }
    Ok(ids)
}

async fn send(request: RequestBuilder) -> Result<http::Response<Bytes>, CallError> {
    http_client::send(request, MAX_RESPONSE_BYTES).await
}

struct Member {
    client: Client,
    gateway: String,
    id: String,
    access: tokio::sync::RwLock<String>,
    password: String,
}

impl Member {
    async fn sign_up(client: &Client, gateway: &str, rng: &mut StdRng) -> anyhow::Result<Self> {
        // Random, so that a second run does not have the same members.
        let id = format!("demo{:09}", rand::rng().random_range(0..1_000_000_000_u32));
        let password = format!("Demo!{:08}", rng.random_range(0..100_000_000_u32));
        let member = Self {
            client: client.clone(),
            gateway: gateway.to_owned(),
            id,
            access: tokio::sync::RwLock::default(),
            password,
        };
        let body = json!({
            "id": member.id, "password": member.password, "name": "Demo Member",
            "email": format!("{}@example.com", member.id),
        });
        let answer = send(member.call(Method::POST, "/api/auth/signup").json(&body)).await?;
        if answer.status() != StatusCode::CREATED {
            let (status, body) = (answer.status(), String::from_utf8_lossy(answer.body()));
            bail!("signing up a demo member was answered {status}: {body}");
        }
        member.log_in().await?;
        Ok(member)
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.gateway))
    }

    async fn log_in(&self) -> anyhow::Result<()> {
        let body = json!({"id": self.id, "password": self.password});
        let response = send(self.call(Method::POST, "/api/auth/login").json(&body)).await?;
        let body: Value = http_client::json_of(&response).context("logging in a demo member")?;
        body["accessToken"]
            .as_str()
            .context("no accessToken in the answer to a log-in")?
            .clone_into(&mut *self.access.write().await);
        Ok(())
    }

    /// One visit of a member; failures are counted.
    async fn act(&self, spots: &[String], stats: &TrafficStats, rng: &mut StdRng) {
        let Some(spot) = choose(spots, rng) else {
            return;
        };
        let path = format!("/api/tour-spots/{spot}");
        self.count(self.call(Method::GET, &path), &stats.views, stats).await;
        if rng.random_bool(BOOKMARK_CHANCE) {
            let path = format!("/api/users/{}/bookmarks", self.id);
            let call = self.call(Method::POST, &path).json(&json!({"tourSpotId": spot}));
            self.count(call, &stats.bookmarks, stats).await;
        }
        let path = ["/api/recommendations/trend", "/api/recommendations/personalized"]
            .choose(rng)
            .copied()
            .unwrap_or_default();
        self.count(self.call(Method::GET, path), &stats.recommendations, stats).await;
    }

    async fn count(&self, call: RequestBuilder, done: &AtomicU64, stats: &TrafficStats) {
        let token = self.access.read().await.clone();
        let answer = match send(call.bearer_auth(token)).await {
            Ok(answer) => answer,
            Err(error) => {
                stats.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a demo call failed");
                return;
            }
        };
        if answer.status().is_success() {
            done.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The access token expires during a long demo.
        if answer.status() == StatusCode::UNAUTHORIZED && self.log_in().await.is_ok() {
            return;
        }
        stats.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(status = answer.status().as_u16(), "a demo call was refused");
    }
}

/// Chooses by Zipf's law: the second spot half as often as the first, and so on. Inverts the continuous
/// cumulative distribution, which is close enough for a demo.
fn choose<'a>(spots: &'a [String], rng: &mut StdRng) -> Option<&'a String> {
    let rank = ((spots.len() + 1) as f64).powf(rng.random::<f64>()) as usize - 1;
    spots.get(rank.min(spots.len().saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_spots_are_chosen_most_and_every_spot_some_time() {
        let spots: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            let chosen = choose(&spots, &mut rng).unwrap();
            counts[chosen.parse::<usize>().unwrap()] += 1;
        }
        assert!(counts.is_sorted_by(|more, less| *more as f64 > *less as f64 * 0.8), "{counts:?}");
        assert!(counts[0] > 2 * counts[4] && counts[9] > 0, "{counts:?}");
        assert_eq!(choose(&[], &mut rng), None);
    }
}
