//! The gateway's own calls to services: token keys, ended sessions, API descriptions, and renewals of
//! sessions by cookie. Client requests wait for renewals and unknown keys alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Response, StatusCode};
use reqwest::RequestBuilder;
use serde::Serialize;
use tourin_chassis::http_client;
use tourin_chassis::telemetry::{HttpCall, Span};
use tourin_registry_api::{Directory, Instance, Workload};

use crate::keyed::Keyed;

/// The name of the service that issues tokens and ends sessions.
pub const CORE: &str = "core";

const POST_ATTEMPTS: u32 = 2;
/// Largest response to a health check.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// Calls services as a member of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct MeshClient {
    workload: Workload,
    /// By service.
    clients: Arc<Keyed<reqwest::Client>>,
    directory: Directory,
}

impl MeshClient {
    /// A client of services, whose instances it finds in `directory`.
    pub fn new(workload: Workload, directory: Directory) -> Self {
        Self { workload, clients: Arc::default(), directory }
    }

    /// Sets up the HTTP clients of `services`.
    ///
    /// # Errors
    /// When one cannot be set up.
    pub fn prepare(&self, services: &BTreeSet<String>) -> anyhow::Result<()> {
        services.iter().try_for_each(|service| self.client(service).map(drop))
    }

    /// The HTTP client of a service.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn client(&self, service: &str) -> anyhow::Result<Arc<reqwest::Client>> {
        self.clients.get_or_try_insert_with(service, || {
            let config = self.workload.client_config(service)?;
            http_client::mesh_client(config, None)
                .with_context(|| format!("cannot set up calls to {service}"))
        })
    }

    /// The directory of instances.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The body of a successful response of one instance of `service`.
    ///
    /// # Errors
    /// No instance, no successful response within `limit`, or a body of more than `max_bytes`.
    pub async fn get(
        &self,
        service: &str,
        path: &str,
        limit: Duration,
        max_bytes: usize,
    ) -> anyhow::Result<Bytes> {
        let instance = self.pick(service)?;
        let request = self.request(Method::GET, service, &instance, path)?;
        body_of(send(request.timeout(limit), &instance, max_bytes).await?, &instance)
    }

    /// The status that one instance answers with within `limit`.
    ///
    /// # Errors
    /// No complete response in time, or one that is too large for a health check.
    pub async fn status(
        &self,
        instance: &Instance,
        path: &str,
        limit: Duration,
    ) -> anyhow::Result<StatusCode> {
        let request = self.request(Method::GET, &instance.service, instance, path)?;
        Ok(send(request.timeout(limit), instance, MAX_STATUS_BYTES).await?.status())
    }

    /// Posts JSON to an instance of `service`, and to the next one if the first fails without a 4xx
    /// status; so the call must be repeatable. Each attempt is a span of the current trace, named by
    /// `path`, which must have no personal data in it. Gives the response's body.
    ///
    /// # Errors
    /// As [`MeshClient::get`], of the last attempt. `limit` is for all attempts together.
    pub async fn post(
        &self,
        service: &str,
        path: &'static str,
        body: &impl Serialize,
        limit: Duration,
        max_bytes: usize,
    ) -> anyhow::Result<Bytes> {
        let body = Bytes::from(serde_json::to_vec(body)?);
        let mut resend_count = 0;
        loop {
            let instance = self.pick(service)?;
            let span = Span::current().http_client(&HttpCall {
                method: &Method::POST,
                route: path,
                service,
                instance: Some(&instance.id),
                address: Some(instance.address),
                resend_count,
            });
            let request = self
                .request(Method::POST, service, &instance, path)?
                .headers(span.headers().into_iter().collect())
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone())
                .timeout(limit / POST_ATTEMPTS);
            let response = send(request, &instance, max_bytes).await;
            match &response {
                Ok(response) => span.set_status(response.status().as_u16()),
                Err(_) => span.set_error("no_answer"),
            }
            let refused = matches!(&response, Ok(response) if response.status().is_client_error());
            let body = response.and_then(|response| body_of(response, &instance));
            resend_count += 1;
            if body.is_ok() || refused || resend_count >= POST_ATTEMPTS {
                return body;
            }
        }
    }

    fn pick(&self, service: &str) -> anyhow::Result<Instance> {
        self.directory.pick(service).with_context(|| format!("no instance of {service}"))
    }

    fn request(
        &self,
        method: Method,
        service: &str,
        instance: &Instance,
        path: &str,
    ) -> anyhow::Result<RequestBuilder> {
        Ok(self.client(service)?.request(method, format!("{}{path}", instance.base_url())))
    }
}

async fn send(
    request: RequestBuilder,
    instance: &Instance,
    max_bytes: usize,
) -> anyhow::Result<Response<Bytes>> {
    http_client::send(request, max_bytes)
        .await
        .with_context(|| format!("no answer of {}", instance.id))
}

fn body_of(response: Response<Bytes>, instance: &Instance) -> anyhow::Result<Bytes> {
    let status = response.status();
    ensure!(status.is_success(), "{} refuses with {status}", instance.id);
    Ok(response.into_body())
}
