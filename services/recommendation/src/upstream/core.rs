//! Core's internal HTTP API, called as a service of the mesh.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tourin_chassis::http_client;
use tourin_chassis::telemetry::{HttpCall, Span};
use tourin_registry_api::{Directory, Instance};
use tourin_shared_events::events::{Event, TourSpotUpsert};

use crate::app::ports::{Catalogue, CataloguePage, PortError};
use crate::domain::spot::Spot;

/// Core's name in the registry.
pub const CORE: &str = "core";
/// Longest time for a whole answer, in milliseconds.
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// The path of core's spots, page by page.
const CATALOGUE: &str = "/internal/tour-spots";
/// Spots on a page, the most that core gives.
const PAGE_SPOTS: usize = 1_000;
/// Largest answer that is read, in bytes (64 MiB): a page of spots with the longest texts.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Calls an instance of core that is up.
#[derive(Clone)]
pub struct CoreClient {
    http: reqwest::Client,
    directory: Directory,
}

impl CoreClient {
    /// A client that finds core through `directory` and calls it by `tls`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(directory: Directory, tls: rustls::ClientConfig) -> anyhow::Result<Self> {
        let http = http_client::mesh_client(tls, Duration::from_millis(REQUEST_TIMEOUT_MS))?;
        Ok(Self { http, directory })
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let (core, call) = self.call(path)?;
        call.run(self.ask(&core, path, query, &call)).await
    }

    /// An instance of core, and the span of a call to it.
    fn call(&self, path: &str) -> anyhow::Result<(Instance, Span)> {
        let core = self.directory.pick(CORE).context("no instance of core is up")?;
        let current = Span::current();
        let span = match current.trace_id() {
            Some(_) => current.http_client(&HttpCall {
                method: &Method::GET,
                route: path,
                service: CORE,
                instance: Some(&core.id),
                address: Some(core.address),
                resend_count: 0,
            }),
            None => Span::none(),
        };
        Ok((core, span))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        core: &Instance,
        path: &str,
        query: &[(&str, &str)],
        call: &Span,
    ) -> anyhow::Result<T> {
        let url = format!("{}{path}", core.base_url());
        let mut headers = HeaderMap::new();
        call.inject(&mut headers);
        let request = self.http.get(&url).query(query).headers(headers);
        let response = http_client::send(request, MAX_ANSWER_BYTES)
            .await
            .inspect_err(|_| call.set_error("no_answer"))
            .with_context(|| format!("no answer of core to {path}"))?;
        let status = response.status();
        call.set_status(status.as_u16());
        if !status.is_success() {
            call.set_error(status.as_str());
        }
        ensure!(status.is_success(), "core answers {path} with {status}");
        serde_json::from_slice(response.body())
            .inspect_err(|_| call.set_error("no_answer"))
            .with_context(|| format!("the answer of core to {path} is not understood"))
    }
}

/// Every failure counts as an outage: another instance, or a newer one, may answer later.
fn failed_call(error: anyhow::Error) -> PortError {
    PortError::unavailable(error)
}

/// A page of the catalogue, for the name of core's log only.
#[derive(Deserialize)]
struct Log {
    log_id: String,
}

#[derive(Deserialize)]
struct Page {
    spots: Vec<TourSpotUpsert>,
    next: Option<String>,
}

#[async_trait]
impl Catalogue for CoreClient {
    async fn log_id(&self) -> Result<String, PortError> {
        let log: Log = self.get(CATALOGUE, &[("limit", "1")]).await.map_err(failed_call)?;
        Ok(log.log_id)
    }

    async fn page(&self, after: Option<&str>) -> Result<CataloguePage, PortError> {
        let limit = PAGE_SPOTS.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(after.map(|after| ("after", after)));
        let page: Page = self.get(CATALOGUE, &query).await.map_err(failed_call)?;
        let spots = page
            .spots
            .into_iter()
            .filter_map(|upsert| match upsert.validate() {
                Ok(()) => Spot::try_from(upsert).ok(),
                Err(error) => {
                    tracing::warn!(%error, "a spot of core's catalogue is left out");
                    None
                }
            })
            .collect();
        Ok(CataloguePage { spots, next: page.next })
    }
}
