//! The watch and its acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use tourin_chassis::http::{ApiError, Json, Params, Path};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::limits;
use tourin_registry_api::wire::{AckRequest, CHANGE_EVENT, KEEP_ALIVE_MS, SNAPSHOT_EVENT};

use super::authority::{MaybeSecretHolder, SecretHolder};
use super::instances::{english, invalid};
use crate::app::{Discovery, Watch, WatchItem};
use crate::domain::WatcherKind;

pub(super) async fn open(
    MaybeSecretHolder(trusted): MaybeSecretHolder,
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
    }
    let watcher = match (&name, trusted) {
        (Some(name), true) => WatcherKind::Named(name),
        (None, true) => WatcherKind::Unnamed,
        (None, false) => WatcherKind::Anonymous,
        (Some(_), false) => {
            return Err(ApiError::unauthenticated(english(
                "a watch with a name needs the registration secret: others will wait for it",
            )));
        }
    };
    // The header by which an `EventSource` resumes.
    let resumed = || headers.get("last-event-id")?.to_str().ok()?.parse().ok();
    let from = from.or_else(resumed).unwrap_or(0);
    let watch = discovery
        .watch(watcher, from, epoch, stop)
        .map_err(|e| ApiError::unavailable(english(e), Duration::from_secs(1)))?;

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

pub(super) async fn acknowledge(
    _: SecretHolder,
    State(discovery): State<Arc<Discovery>>,
    Path(watcher): Path<String>,
    Json(request): Json<AckRequest>,
) -> Result<StatusCode, ApiError> {
    if discovery.acknowledge(&watcher, request.version) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(english("no such watcher is connected")))
    }
}
