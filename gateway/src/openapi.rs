//! The API description of the mesh: the services' descriptions, merged.

mod responses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tourin_chassis::http::{ErrorBody, fields};
use tourin_chassis::session_cookies::CookieNames;
use utoipa::PartialSchema as _;

use self::responses::Call;
use crate::mesh_client::MeshClient;
use crate::messages;
use crate::responses::Response;
use crate::routes::{Access, CurrentRoutes, OPENAPI_PATH, RouteTable};

const PART_PATH: &str = "/internal/openapi.json";
const REFRESH_EVERY: Duration = Duration::from_secs(60);
/// The pause before services whose description is missing are asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const FETCH_TIMEOUT: Duration = Duration::from_millis(2_000);
const MAX_PART_BYTES: usize = 8 << 20;
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

struct Document {
    body: Bytes,
    etag: HeaderValue,
}

/// The current description.
#[derive(Default)]
pub struct ApiDescription {
    document: ArcSwapOption<Document>,
}

impl ApiDescription {
    /// The response to a request for the description.
    pub fn response(&self, headers: &HeaderMap) -> Response {
        let Some(document) = self.document.load_full() else {
            return Response::unavailable(messages::no_description_yet());
        };
        let known = fields::elements(headers, &IF_NONE_MATCH).any(|tag| {
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == document.etag.as_bytes()
        });
        let response = if known {
            Response::empty(StatusCode::NOT_MODIFIED)
        } else {
            Response::json(StatusCode::OK, document.body.clone())
        };
        response
            .cacheable()
            .with(ETAG, document.etag.clone())
            .with(CACHE_CONTROL, HeaderValue::from_static("no-cache"))
    }

    /// Keeps the description current until `stop`.
    pub async fn follow(
        &self,
        routes: Arc<CurrentRoutes>,
        mesh: MeshClient,
        stop: CancellationToken,
    ) {
        let mut membership = mesh.directory().changed();
        let mut routes_changed = routes.changed();
        let mut parts: BTreeMap<String, Value> = BTreeMap::new();
        loop {
            let mut complete = true;
            routes_changed.mark_unchanged();
            let table = routes.table();
            parts.retain(|service, _| table.services().contains(service));
            for service in table.services() {
                let fetched = tokio::select! {
                    () = stop.cancelled() => return,
                    fetched = fetch(&mesh, service) => fetched,
                };
                match fetched {
                    Ok(part) => {
                        parts.insert(service.clone(), part);
                    }
                    Err(error) => {
                        // The previous part stays. A service without instances wakes this task when it
                        // registers.
                        complete &= mesh.directory().instances(service).is_empty();
                        tracing::debug!(
                            service,
                            error = format!("{error:#}"),
                            "cannot fetch an API description"
                        );
                    }
                }
            }
            if !parts.is_empty() {
                self.publish(&merge(&parts, &table));
            }
            let pause = if complete { REFRESH_EVERY } else { RETRY_AFTER };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                Ok(()) = membership.changed() => {}
                Ok(()) = routes_changed.changed() => {}
            }
        }
    }

    fn publish(&self, document: &Value) {
        let body = document.to_string();
        let digest: String =
            Sha256::digest(&body).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        if let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
            self.document.store(Some(Arc::new(Document { body: body.into(), etag })));
        }
    }
}

async fn fetch(mesh: &MeshClient, service: &str) -> anyhow::Result<Value> {
    let part = mesh.get(service, PART_PATH, FETCH_TIMEOUT, MAX_PART_BYTES).await?;
    Ok(serde_json::from_slice(&part)?)
}

/// Merges the parts: the calls that are routed to the service that describes them, with the gateway's
/// own responses and access rules added.
pub fn merge(parts: &BTreeMap<String, Value>, routes: &RouteTable) -> Value {
    let mut paths = Map::new();
    let mut components: Map<String, Value> = Map::new();
    // Before those of the parts, which have the same schema.
    set_component(&mut components, "schemas", "ErrorBody", json!(ErrorBody::schema()));
    responses::add_components(&mut components);
    let mut tags = Vec::new();
    for (service, part) in parts {
        let mut part = part.clone();
        let renamed = take_components(service, &part, &mut components);
        rename_references(&mut part, &renamed);
        for tag in part["tags"].as_array().into_iter().flatten() {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        let Some(Value::Object(described)) = part.get_mut("paths").map(Value::take) else {
            continue;
        };
        for (template, item) in described {
            add_path(service, template, item, routes, &mut paths);
        }
    }
    paths.insert(OPENAPI_PATH.to_owned(), json!({"get": own_description()}));
    responses::drop_unused(&paths, &mut components);
    set_component(
        &mut components,
        "securitySchemes",
        "bearer",
        json!({
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
        }),
    );
    set_component(
        &mut components,
        "securitySchemes",
        "cookie",
        json!({
            "type": "apiKey", "in": "cookie", "name": CookieNames::HostPrefixed.access(),
        }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tourin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Everything behind the gateway's one URL.",
            "license": {"name": "Apache License 2.0", "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": components,
    })
}

fn own_description() -> Value {
    let validators = json!({
        "ETag": {"description": "Names this version of the document.", "schema": {"type": "string"}},
    });
    let mut operation = json!({
        "operationId": "apiDescription",
        "summary": "This document",
        "security": [],
        "parameters": [{
            "name": "If-None-Match", "in": "header", "required": false,
            "description": "The ETag of a document that is known already",
            "schema": {"type": "string"},
        }],
        "responses": {
            "200": {
                "description": "OpenAPI 3.1",
                "headers": validators,
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "304": {
                "description": "Not modified since the ETag given in If-None-Match",
                "headers": validators,
            },
        },
    });
    if let Some(operation) = operation.as_object_mut() {
        let call = Call { route: None, access: &Access::Public, method: &Method::GET };
        responses::complete(&call, operation);
    }
    operation
}

/// The `security` of a call. A public call takes a session if the route or the service says so.
fn security(access: &Access, described: Option<&Value>) -> Value {
    let takes_a_session = || {
        let ways = described.and_then(Value::as_array).into_iter().flatten();
        ways.filter_map(Value::as_object).any(|way| !way.is_empty())
    };
    match access {
        Access::Session | Access::Role(_) => json!([{"bearer": []}, {"cookie": []}]),
        Access::Anonymous => json!([]),
        Access::Public if !takes_a_session() => json!([]),
        Access::Public | Access::Optional | Access::Logout => {
            json!([{}, {"bearer": []}, {"cookie": []}])
        }
    }
}

fn add_path(
    service: &str,
    template: String,
    mut item: Value,
    routes: &RouteTable,
    paths: &mut Map<String, Value>,
) {
    let Some(route) = routes.find(&sample(&template)).filter(|route| *route.service == *service)
    else {
        return; // Not routed, such as a service's /internal paths.
    };
    let Some(operations) = item.as_object_mut() else {
        return;
    };
    operations.retain(|method, operation| {
        if !METHODS.contains(&method.as_str()) {
            return !["head", "options", "trace"].contains(&method.as_str());
        }
        let Ok(method) = Method::from_bytes(method.to_ascii_uppercase().as_bytes()) else {
            return false;
        };
        let Some(access) = route.access(&method) else {
            return false;
        };
        if let Some(operation) = operation.as_object_mut() {
            let security = security(access, operation.get("security"));
            operation.insert("security".to_owned(), security);
            responses::complete(&Call { route: Some(route), access, method: &method }, operation);
        }
        true
    });
    if operations.keys().any(|key| METHODS.contains(&key.as_str())) {
        paths.insert(template, item);
    }
}

/// A path that the template matches.
fn sample(template: &str) -> String {
    let mut path = String::new();
    for segment in template.split('/').skip(1) {
        path.push('/');
        path.push_str(if segment.contains('{') { "x" } else { segment });
    }
    path
}

/// Merges a part's components. Those whose names are taken by different ones get new names, which are
/// returned.
fn take_components(
    service: &str,
    part: &Value,
    into: &mut Map<String, Value>,
) -> BTreeMap<String, String> {
    let own = part["components"].as_object().cloned().unwrap_or_default();
    let mut renamed = BTreeMap::new();
    for (kind, named) in &own {
        if kind == "securitySchemes" {
            continue; // The gateway has its own.
        }
        for (name, value) in named.as_object().into_iter().flatten() {
            let taken = into.get(kind).and_then(|known| known.get(name));
            if taken.is_some_and(|known| known != value) {
                renamed.insert(
                    format!("#/components/{kind}/{name}"),
                    format!("#/components/{kind}/{service}.{name}"),
                );
            }
        }
    }
    for (kind, named) in own {
        if kind == "securitySchemes" {
            continue;
        }
        for (name, mut value) in named.as_object().cloned().into_iter().flatten() {
            rename_references(&mut value, &renamed);
            let clashes = renamed.contains_key(&format!("#/components/{kind}/{name}"));
            let name = if clashes { format!("{service}.{name}") } else { name };
            set_component(into, &kind, &name, value);
        }
    }
    renamed
}

fn set_component(components: &mut Map<String, Value>, kind: &str, name: &str, value: Value) {
    let named = components.entry(kind).or_insert_with(|| json!({}));
    if let Some(named) = named.as_object_mut() {
        named.insert(name.to_owned(), value);
    }
}

fn rename_references(value: &mut Value, renamed: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(new) = renamed.get(target.as_str()) {
                            target.clone_from(new);
                        }
                    }
                    value => rename_references(value, renamed),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename_references(item, renamed)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
