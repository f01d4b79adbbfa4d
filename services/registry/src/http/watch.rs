//! The watch and its acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use tourin_chassis::http::PeerOf;
use tourin_chassis::http::{ApiError, Json, Params, Path};
use tourin_chassis::peer::GATEWAY;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::limits;
use tourin_registry_api::wire::{AckRequest, CHANGE_EVENT, KEEP_ALIVE_MS, SNAPSHOT_EVENT, codes};

use super::instances::{english, invalid, unavailable};
use crate::app::{Discovery, Watch, WatchError, WatchItem};
use crate::domain::{TooManyWatchers, WatcherKind};

pub(super) async fn open(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    State(stop): State<Shutdown>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let from: Option<u64> = params.one("from")?;
    let epoch: u64 = params.one("epoch")?.unwrap_or(0);
    let name: Option<String> = params.one("watcher")?;
    if let Some(name) = &name {
        limits::instance_id(name).map_err(invalid)?;
        is_its_own(&peer, name)?;
    }
    let watcher = match &name {
        Some(name) => WatcherKind::Named(name),
        None => WatcherKind::Unnamed,
    };
    // The header by which an `EventSource` resumes.
    let resumed = || headers.get("last-event-id")?.to_str().ok()?.parse().ok();
    let from = from.or_else(resumed).unwrap_or(0);
    let of = format!("{}/{}", peer.0.service, peer.0.instance);
    let watch = discovery.watch((watcher, &of), (from, epoch), stop).await;
    let watch = watch.map_err(|error| match error {
        WatchError::TooMany(error @ TooManyWatchers::InAll(_)) => {
            ApiError::unavailable(english(error), Duration::from_secs(1))
        }
        WatchError::TooMany(error @ TooManyWatchers::OfPeer(_)) => {
            ApiError::conflict(english(error)).coded(codes::TOO_MANY_WATCHES)
        }
        WatchError::Unavailable(error) => unavailable(error),
    })?;

    let events = stream::unfold(watch, next_event);
    let keep_alive = KeepAlive::new().interval(Duration::from_millis(KEEP_ALIVE_MS));
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn next_event(mut watch: Watch) -> Option<(Result<Event, axum::Error>, Watch)> {
    let (name, version, event) = match watch.next().await? {
        WatchItem::Snapshot(snapshot) => {
            (SNAPSHOT_EVENT, snapshot.version, Event::default().json_data(snapshot))
        }
        WatchItem::Change(change) => {
            (CHANGE_EVENT, change.version, Event::default().json_data(&*change))
        }
    };
    Some((event.map(|event| event.event(name).id(version.to_string())), watch))
}

/// Departures wait for a watcher by its name, so it must be the gateway's own.
fn is_its_own(PeerOf(peer): &PeerOf, watcher: &str) -> Result<(), ApiError> {
    if (&*peer.service, &*peer.instance) == (GATEWAY, watcher) {
        return Ok(());
    }
    Err(ApiError::forbidden(english(format!(
        "the certificate is that of {}/{}: gateways watch under a name, and under their own alone",
        peer.service, peer.instance
    ))))
}

pub(super) async fn acknowledge(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path(watcher): Path<String>,
    Json(request): Json<AckRequest>,
) -> Result<StatusCode, ApiError> {
    is_its_own(&peer, &watcher)?;
    if discovery.acknowledge(&watcher, request.version).await.map_err(unavailable)? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(english("no such watcher is connected")))
    }
}
