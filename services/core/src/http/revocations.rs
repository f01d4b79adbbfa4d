//! `/internal/revocations`: the log of ended sessions, by long poll. Gateways keep the sessions in
//! memory until `until` and continue from `next`.

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Params, ServiceCaller};

use utoipa_axum::router::OpenApiRouter;

use super::AppState;
use crate::app::revocations::RevocationPage;

/// The longest wait of a long poll, in milliseconds.
const MAX_WAIT_MS: u64 = 25_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/revocations", get(follow))
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
