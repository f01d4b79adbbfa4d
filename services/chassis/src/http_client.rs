//! The HTTP client of Tourin's own calls: between the parts of the mesh, to the collector of traces,
//! and by the operator's commands.
//!
//! | what | bound |
//! |---|---|
//! | connecting | [`CONNECT_TIMEOUT`], and the total |
//! | a call, up to the last byte of the response's body | the client's `total`, or the request's own `timeout` |
//! | the body of the response | the `max_bytes` of [`send`] |
//! | the head of the response | hyper's 100 headers, in about 400 KiB |
//! | redirects | none is followed: a redirect is a response like any other |
//!
//! The proxy settings of the environment are ignored: traffic of the mesh stays in the mesh.

use std::error::Error;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Limited};
use reqwest::{Body, Client, ClientBuilder, RequestBuilder, redirect};
use serde::de::DeserializeOwned;

/// How long connecting may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A client for servers outside of the mesh, of which clones share connections. Without `total`, each
/// request sets its own `timeout`, or is a stream without an end.
///
/// # Errors
/// When the client cannot be set up.
pub fn client(total: impl Into<Option<Duration>>) -> anyhow::Result<Client> {
    // Fails if it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    built(Client::builder(), total.into())
}

/// A client for one service of the mesh, whose instances `tls` verifies.
///
/// # Errors
/// When the client cannot be set up.
pub fn mesh_client(
    tls: rustls::ClientConfig,
    total: impl Into<Option<Duration>>,
) -> anyhow::Result<Client> {
    built(Client::builder().tls_backend_preconfigured(tls).https_only(true), total.into())
}

/// [`mesh_client`] for the registry: without a total time-out, which would end its watch.
///
/// # Errors
/// When the client cannot be set up.
pub fn registry_client(tls: rustls::ClientConfig) -> Result<Client, String> {
    mesh_client(tls, None).map_err(|error| format!("{error:#}"))
}

fn built(builder: ClientBuilder, total: Option<Duration>) -> anyhow::Result<Client> {
    let builder =
        builder.connect_timeout(CONNECT_TIMEOUT).redirect(redirect::Policy::none()).no_proxy();
    let builder = match total {
        Some(total) => builder.timeout(total),
        None => builder,
    };
    builder.build().context("cannot set up an HTTP client")
}

/// Why there is no complete response. The message does not repeat the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, no response in time, or one that broke off. The message is the innermost cause
    /// ("connection refused"), which says more than the outermost ("error sending request").
    #[error("{}", innermost(.0))]
    NoResponse(Box<reqwest::Error>),
    /// The response's body is longer than the caller accepts.
    #[error("the response has more than {0} bytes")]
    TooLarge(usize),
}

impl CallError {
    /// Whether nothing was sent, so that a retry is safe.
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::NoResponse(error) if error.is_connect())
    }

    /// Whether a time-out ended the call.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::NoResponse(error) if error.is_timeout())
    }
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        Self::NoResponse(Box::new(error.without_url()))
    }
}

/// Sends a request and reads the complete response, with any status, of at most `max_bytes`.
///
/// # Errors
/// [`CallError`] when no complete response came.
pub async fn send(request: RequestBuilder, max_bytes: usize) -> Result<Response<Bytes>, CallError> {
    let response: Response<Body> = request.send().await?.into();
    let (head, body) = response.into_parts();
    match Limited::new(body, max_bytes).collect().await {
        Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
        Err(error) => Err(match error.downcast::<reqwest::Error>() {
            Ok(error) => (*error).into(),
            Err(_) => CallError::TooLarge(max_bytes),
        }),
    }
}

/// The JSON of a successful response.
///
/// # Errors
/// When the status is not 2xx, or the body is not the JSON of a `T`.
pub fn json_of<T: DeserializeOwned>(response: &Response<Bytes>) -> anyhow::Result<T> {
    let status = response.status();
    ensure!(status.is_success(), "answered {status}");
    serde_json::from_slice(response.body()).context("not the expected JSON")
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::get;
    use futures::{Stream, StreamExt as _, stream};
    use http::StatusCode;

    use super::*;

    /// A body of which the first bytes come, and no end.
    fn stalling() -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::iter([Ok(Bytes::from_static(b"begun"))]).chain(stream::pending())
    }

    async fn server() -> String {
        let routes = Router::new()
            .route("/long", get(|| async { "x".repeat(1_000) }))
            .route("/away", get(|| async { Redirect::temporary("/long") }))
            .route("/never", get(std::future::pending::<String>))
            .route("/stalls", get(|| async { axum::body::Body::from_stream(stalling()) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        format!("http://user:hunter2@{address}")
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        let (server, client) = (server().await, client(None).unwrap());
        let long = || client.get(format!("{server}/long"));
        assert_eq!(send(long(), 1_000).await.unwrap().into_body().len(), 1_000);
        let error = send(long(), 999).await.unwrap_err();
        assert_eq!(error.to_string(), "the response has more than 999 bytes");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (server, client) = (server().await, client(None).unwrap());
        let response = send(client.get(format!("{server}/away")), 100).await.unwrap();
        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    }

    #[tokio::test]
    async fn a_call_ends_in_time_and_its_error_does_not_repeat_the_url() {
        let server = server().await;
        let limit = Duration::from_millis(50);
        let late = |path| send(client(limit).unwrap().get(format!("{server}{path}")), 100);
        let (silent, stalled) = (late("/never").await, late("/stalls").await);
        let (silent, stalled) = (silent.unwrap_err(), stalled.unwrap_err());
        for late in [&silent, &stalled] {
            assert!(late.is_timeout() && !late.is_connect(), "{late:?}");
        }
        let nobody = client(None).unwrap().get("http://user:hunter2@127.0.0.1:1/");
        let refused = send(nobody, 100).await.unwrap_err();
        assert!(refused.is_connect(), "{refused:?}");
        for error in [silent, stalled, refused] {
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
