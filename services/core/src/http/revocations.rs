//! `/internal/revocations`: the log of ended sessions, by long poll. Gateways keep the sessions in
//! memory until `until` and continue from `next`.
//!
//! `/internal/revocation-canaries`: an entry that ends no session, for a gateway that measures how soon
//! it learns of an end.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tourin_chassis::http::{ApiError, Json, Message, Params, ServiceCaller};

use utoipa_axum::router::OpenApiRouter;

use super::AppState;
use crate::app::revocations::RevocationPage;
use crate::domain::token::SessionId;

/// The longest wait of a long poll, in milliseconds.
const MAX_WAIT_MS: u64 = 25_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .route("/internal/revocations", get(follow))
        .route("/internal/revocation-canaries", post(append_canary))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PageAnswer {
    log_id: String,
    next: u64,
    entries: Vec<EntryAnswer>,
}

#[derive(Serialize)]
struct EntryAnswer {
    seq: u64,
    session: String,
    until: String,
    /// A tag of cached responses that are out of date; the session is none then.
    #[serde(skip_serializing_if = "Option::is_none")]
    invalidate: Option<String>,
}

impl From<RevocationPage> for PageAnswer {
    fn from(page: RevocationPage) -> Self {
        let rfc3339 = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Micros, true);
        Self {
            log_id: page.log_id,
            next: page.next,
            entries: page
                .entries
                .into_iter()
                .map(|entry| EntryAnswer {
                    seq: entry.seq,
                    session: entry.session.to_string(),
                    until: rfc3339(entry.until),
                    invalidate: entry.invalidates,
                })
                .collect(),
        }
    }
}

async fn follow(
    State(state): State<AppState>,
    _: ServiceCaller,
    params: Params,
) -> Result<Json<PageAnswer>, ApiError> {
    let after = params.one::<u64>("after")?.unwrap_or(0);
    let wait_ms = params.one::<u64>("wait_ms")?.unwrap_or(0).min(MAX_WAIT_MS);
    let wait = Duration::from_millis(wait_ms);
    let page = state.revocations.follow(after, wait, state.shutdown.begun()).await?;
    Ok(Json(page.into()))
}

#[derive(Deserialize)]
struct CanaryRequest {
    session: String,
}

async fn append_canary(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(request): Json<CanaryRequest>,
) -> Result<StatusCode, ApiError> {
    let canary = SessionId::parse(&request.session).filter(|id| id.is_of_no_session());
    let canary = canary.ok_or_else(|| {
        let message = "session must be a UUID of version 8, which no session has";
        ApiError::invalid(Message::for_operators(message))
    })?;
    state.revocations.append_canary(canary).await?;
    Ok(StatusCode::NO_CONTENT)
}
