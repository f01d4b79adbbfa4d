//! This service's part of the mesh's OpenAPI document. The gateway merges the parts.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tourin_chassis::http::{ErrorBody, ServiceCaller};

use utoipa::{IntoResponses, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::app::recommend::Recommender;

/// The path of the document, for services only.
const PATH: &str = "/internal/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(title = "Tourin recommendation", description = "Trend, similar spots, personal recommendations."),
    tags((name = "recommendations", description = "What is worth a visit"))
)]
struct Document;

/// The 503 of every call.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "Something that the call needs is down or overloaded",
    headers(("Retry-After" = u32, description = "Seconds after which to try again"))
)]
#[allow(dead_code, reason = "read by utoipa only")]
pub(super) struct Unavailable(ErrorBody);

/// Adds the document's general part to the routes.
pub(super) fn describe(routes: OpenApiRouter<Recommender>) -> OpenApiRouter<Recommender> {
    OpenApiRouter::with_openapi(Document::openapi()).merge(routes)
}

pub(super) fn serve(routes: OpenApiRouter<Recommender>) -> Router<Recommender> {
    let (router, document) = routes.split_for_parts();
    let json = document.to_json().expect("a document made at compile time can be written as JSON");
    let json: Arc<str> = json.into();
    router.merge(Router::new().route(PATH, get(answer)).with_state(json))
}

async fn answer(_service: ServiceCaller, State(json): State<Arc<str>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], json.to_string())
}
