//! The gateway's own calls to services: token keys, ended sessions, API descriptions, and renewals of
//! sessions by cookie. Client requests wait for renewals and unknown keys alone.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_chassis::telemetry::{HttpCall, Span};
use tourin_registry_api::{Directory, Instance};

/// The gateway's name in the registry.
pub const GATEWAY: &str = "gateway";
/// The name of the service that issues tokens and ends sessions.
pub const CORE: &str = "core";

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
const POST_ATTEMPTS: u32 = 2;

/// Calls services as a member of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct MeshClient {
    http: reqwest::Client,
    signer: IdentitySigner,
    directory: Directory,
}

impl MeshClient {
    /// A client that finds instances in `directory`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(signer: IdentitySigner, directory: Directory) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            // Traffic inside the mesh ignores the environment's proxy settings.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("cannot set up the client for calls inside the mesh")?;
        Ok(Self { http, signer, directory })
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
        let request = self.request(Method::GET, service, &instance, path);
        let response = send(request.timeout(limit), &instance).await?;
        read(response, &instance, max_bytes).await
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
                .request(Method::POST, service, &instance, path)
                .headers(span.headers().into_iter().collect())
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone())
                .timeout(limit / POST_ATTEMPTS);
            let answered = match send(request, &instance).await {
                Ok(response) => {
                    span.set_status(response.status().as_u16());
                    read(response, &instance, max_bytes).await
                }
                Err(error) => Err(error),
            };
            let Err(error) = answered else { return answered };
            let status = error.downcast_ref::<reqwest::Error>().and_then(reqwest::Error::status);
            match status {
                Some(status) => span.set_status(status.as_u16()),
                None => span.set_error("no_answer"),
            }
            resend_count += 1;
            let refused = status.is_some_and(|status| status.is_client_error());
            if refused || resend_count >= POST_ATTEMPTS {
                return Err(error);
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
    ) -> RequestBuilder {
        let caller = Subject::Service { name: GATEWAY.to_owned() };
        self.http
            .request(method, format!("{}{path}", instance.base_url()))
            .header(IDENTITY_HEADER, self.signer.sign(&caller, service))
    }
}

async fn send(request: RequestBuilder, instance: &Instance) -> anyhow::Result<Response> {
    request
        .send()
        .await
        .with_context(|| format!("{} does not answer", instance.id))?
        .error_for_status()
        .with_context(|| format!("{} refuses", instance.id))
}

async fn read(
    mut response: Response,
    instance: &Instance,
    max_bytes: usize,
) -> anyhow::Result<Bytes> {
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.with_context(|| format!("{} broke off", instance.id))?
    {
        anyhow::ensure!(
            body.len() + chunk.len() <= max_bytes,
            "{}: the response has more than {max_bytes} bytes",
            instance.id
        );
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
