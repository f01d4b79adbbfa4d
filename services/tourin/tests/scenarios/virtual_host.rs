//! A separate virtual host for each scenario on the test bed's RabbitMQ.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tourin_testbed::{Server, given};

/// Meshes on the broker at once: each declares some 30 replicated queues, and the bed is one small machine.
static ROOM: Semaphore = Semaphore::const_new(2);
/// How long the broker may take for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(40);

/// A virtual host. Dropping it removes it.
pub struct VirtualHost {
    name: String,
    _room: SemaphorePermit<'static>,
}

impl VirtualHost {
    /// Waits until fewer than two exist, and creates one.
    pub async fn make(name: &str) -> Self {
        let room = ROOM.acquire().await.unwrap();
        call_the_broker(Method::PUT, &format!("vhosts/{name}"), None).await;
        let user = given(Server::Amqp).parse::<reqwest::Url>().unwrap().username().to_owned();
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        let path = format!("permissions/{name}/{user}");
        call_the_broker(Method::PUT, &path, Some(everything)).await;
        define_users_and_exchanges(name).await;
        Self { name: name.to_owned(), _room: room }
    }

    /// The URL for `--amqp-url`, by a URL of the broker, which names the user.
    pub fn url(&self, broker: &str) -> String {
        let mut url: reqwest::Url = broker.parse().unwrap();
        url.set_path(&self.name);
        url.into()
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        let path = format!("vhosts/{}", self.name);
        // On a separate thread, because this one belongs to the scenario's runtime.
        let clearing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(call_the_broker(Method::DELETE, &path, None));
        });
        let cleared = clearing.join();
        if !std::thread::panicking() {
            cleared.expect("the broker is left as it was");
        }
    }
}

/// Gives the users of the services the permissions that they have in `compose.yaml`, and declares its exchanges.
async fn define_users_and_exchanges(virtual_host: &str) {
    let path = "../../deploy/rabbitmq/definitions.json";
    let definitions = std::fs::read_to_string(path).expect("the broker's definitions");
    let definitions: Value = serde_json::from_str(&definitions).expect("JSON");
    for permission in definitions["permissions"].as_array().expect("a list") {
        let user = permission["user"].as_str().expect("a name");
        let path = format!("permissions/{virtual_host}/{user}");
        call_the_broker(Method::PUT, &path, Some(permission.clone())).await;
    }
    for exchange in definitions["exchanges"].as_array().expect("a list") {
        let name = exchange["name"].as_str().expect("a name");
        let path = format!("exchanges/{virtual_host}/{name}");
        call_the_broker(Method::PUT, &path, Some(exchange.clone())).await;
    }
}

async fn call_the_broker(method: Method, path: &str, body: Option<Value>) {
    let api = std::env::var("TOURIN_AMQP_API_URL").unwrap_or_default();
    assert!(
        !api.is_empty(),
        "TOURIN_AMQP_API_URL is not set: run it by deploy/testbed.sh run -- cargo test ..."
    );
    let client = tourin_chassis::http_client::client(REQUEST_LIMIT).unwrap();
    let mut request = client.request(method, format!("{api}/api/{path}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().await.unwrap().error_for_status().unwrap();
}
