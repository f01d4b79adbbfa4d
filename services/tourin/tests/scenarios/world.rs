//! A mesh with its visitors and members, for scenarios.

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tourin::data_dir::MESH_FILE;
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::http_client;
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::{eventually, eventually_within};

use crate::backends::Backends;

/// How long a scenario waits for a condition.
pub const TIMEOUT: Duration = crate::backends::TIMEOUT;
pub const PASSWORD: &str = "Tour1n!pass";

/// A mesh on free ports and in a temporary folder.
pub struct World {
    /// Runs as long as the scenario. Dropped before its backends.
    mesh: Option<Mesh>,
    _backends: Option<Backends>,
    http: reqwest::Client,
    pub url: String,
}

/// A complete response.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Response {
    async fn read(response: reqwest::Response) -> Self {
        let status = response.status();
        let headers = response.headers().clone();
        Self { status, headers, text: response.text().await.expect("a whole body") }
    }

    /// Whether the response reports a store that did not answer in time, or a request that took too long
    /// because of several such waits.
    fn is_of_a_slow_store(&self) -> bool {
        let words =
            ["recommendations cannot be made at the moment", "longer than this service allows"];
        self.status == 503 && words.iter().any(|words| self.text.contains(words))
    }

    /// Checks the status, and returns the JSON body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.text).expect("a JSON body")
    }

    /// Checks that it is the contract's error with this status, and returns its message.
    #[track_caller]
    pub fn expect_error(self, status: u16) -> String {
        let body = self.expect(status);
        assert!(body["error"].is_string(), "{body}");
        let message = body["message"].as_str().expect("a message").to_owned();
        assert!(!message.is_empty());
        message
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers))
            .to_str()
            .unwrap()
    }

    /// The numbers of the paging headers: page, items here, page size asked for, pages, items.
    #[track_caller]
    pub fn paging(&self) -> [u64; 5] {
        ["page", "page-size", "page-limit", "total-page", "total-item"]
            .map(|name| self.header(&format!("x-pagination-{name}")).parse().unwrap())
    }

    pub fn cookies(&self) -> Vec<String> {
        self.headers
            .get_all("set-cookie")
            .iter()
            .map(|cookie| cookie.to_str().unwrap().to_owned())
            .collect()
    }
}

/// A member with a session.
#[derive(Debug, Clone)]
pub struct Member {
    pub id: String,
    pub access: String,
    pub refresh: String,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut UpSettings)) -> Self {
        let mut settings = UpSettings::ephemeral();
        let backends = Backends::create(&mut settings).await;
        change(&mut settings);
        let mesh = Mesh::start(settings, Shutdown::new()).await.expect("the mesh starts");
        let url = mesh.url();
        Self { mesh: Some(mesh), _backends: Some(backends), ..Self::at(url) }
    }

    /// Waits until every part is ready. Recommendation answers before its replica of spots is complete.
    #[allow(dead_code, reason = "not every set of scenarios is about recommendations")]
    pub async fn filled(self) -> Self {
        let ready = format!("{}/readyz", self.operator_url());
        eventually_within(3 * TIMEOUT, "every part is ready", || async {
            let answer = self.http.get(&ready).send().await.map_err(|error| error.to_string())?;
            let answer = Response::read(answer).await;
            if answer.status.is_success() { Ok(()) } else { Err(answer.text) }
        })
        .await;
        self
    }

    /// A mesh that is running already.
    pub fn at(url: String) -> Self {
        Self { mesh: None, _backends: None, http: http_client::client(TIMEOUT).unwrap(), url }
    }

    /// The mesh that this scenario started.
    pub fn mesh(&self) -> &Mesh {
        self.mesh.as_ref().expect("a mesh of its own")
    }

    /// The operators' URL of that mesh.
    pub fn operator_url(&self) -> String {
        self.mesh().operator_url()
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let attempt = request.try_clone().expect("a body that can be sent again");
            let answer = Response::read(attempt.send().await.expect("an answer")).await;
            let may_be_slow = crate::backends::MONGODB_MAY_BE_SLOW && Instant::now() < deadline;
            if !(may_be_slow && answer.is_of_a_slow_store()) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// As an anonymous visitor.
    pub async fn get(&self, path: &str) -> Response {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    /// As a member.
    pub async fn get_as(&self, member: &Member, path: &str) -> Response {
        self.send(self.request(Method::GET, path).bearer_auth(&member.access)).await
    }

    pub async fn post_as(&self, member: &Member, path: &str, body: Value) -> Response {
        self.send(self.request(Method::POST, path).bearer_auth(&member.access).json(&body)).await
    }

    pub async fn put_as(&self, member: &Member, path: &str, body: Value) -> Response {
        self.send(self.request(Method::PUT, path).bearer_auth(&member.access).json(&body)).await
    }

    pub async fn delete_as(&self, member: &Member, path: &str) -> Response {
        self.send(self.request(Method::DELETE, path).bearer_auth(&member.access)).await
    }

    /// The OpenAPI document, once it has every service's part.
    #[allow(dead_code, reason = "not every set of scenarios asks for it")]
    pub async fn description(&self) -> Value {
        eventually("both services have described their calls", || async {
            let document = self.get("/api/openapi.json").await.expect(200);
            let paths = document["paths"].as_object().expect("paths");
            let complete = ["/api/auth/login", "/api/recommendations/trend"]
                .iter()
                .all(|path| paths.contains_key(*path));
            if complete {
                Ok(document.clone())
            } else {
                Err(paths.keys().cloned().collect::<Vec<_>>())
            }
        })
        .await
    }

    /// Signs up and logs in.
    pub async fn member(&self, id: &str) -> Member {
        let body = json!({
            "id": id, "password": PASSWORD, "name": "Traveller", "email": format!("{id}@example.com"),
        });
        self.post("/api/auth/signup", body).await.expect(201);
        self.login(id, PASSWORD).await
    }

    pub async fn login(&self, id: &str, password: &str) -> Member {
        let body =
            self.post("/api/auth/login", json!({"id": id, "password": password})).await.expect(200);
        Member::from_tokens(id, &body)
    }

    /// The id of a spot of the catalogue, by its exact name.
    pub async fn spot(&self, name: &str) -> String {
        let query: String = form(name);
        let spots =
            self.get(&format!("/api/tour-spots?query={query}&pageSize=100")).await.expect(200);
        spots
            .as_array()
            .unwrap()
            .iter()
            .find(|spot| spot["name"] == name)
            .unwrap_or_else(|| panic!("no spot {name} in {spots}"))["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The ids of the first spots of the catalogue, by name.
    pub async fn spots(&self, count: usize) -> Vec<String> {
        let spots = self.get(&format!("/api/tour-spots?pageSize={count}")).await.expect(200);
        ids(&spots)
    }

    pub async fn view(&self, member: &Member, spot: &str) {
        self.get_as(member, &format!("/api/tour-spots/{spot}")).await.expect(200);
    }

    pub async fn bookmark(&self, member: &Member, spot: &str) {
        let path = format!("/api/users/{}/bookmarks", member.id);
        self.post_as(member, &path, json!({"tourSpotId": spot})).await.expect(201);
    }
}

/// An operator's access to a mesh in this process, by the file that it writes.
#[allow(dead_code, reason = "most sets of scenarios are about clients")]
pub fn access(mesh: &Mesh) -> MeshAccess {
    let text = std::fs::read_to_string(mesh.data_dir().path().join(MESH_FILE)).unwrap();
    let file: toml::Table = toml::from_str(&text).unwrap();
    let token = file["join-token"].as_str().expect("a text").parse().unwrap();
    MeshAccess { join_token: Some(token), ..MeshAccess::new(mesh.registry_url()) }
}

impl Member {
    pub fn from_tokens(id: &str, body: &Value) -> Self {
        let text = |field: &str| body[field].as_str().expect("a token").to_owned();
        Self { id: id.to_owned(), access: text("accessToken"), refresh: text("refreshToken") }
    }

    pub fn cookie(&self) -> HeaderValue {
        HeaderValue::from_str(&format!("access_token={}", self.access)).unwrap()
    }
}

/// The `id` of each element.
pub fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

/// A text, encoded for a query string.
pub fn form(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
