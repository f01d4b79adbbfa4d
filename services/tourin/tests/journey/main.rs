//! One trace through the embedded mesh, read back from what `tourin up` keeps in memory, by its API
//! and by its page in a real browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]
#![allow(dead_code, reason = "a part of what the scenarios share is used here")]

#[path = "../scenarios/backends.rs"]
mod backends;
#[path = "../scenarios/process.rs"]
mod process;
mod read_back;
#[path = "../scenarios/world.rs"]
mod world;

use std::process::Command;

use tourin_chassis::http_client;

use crate::process::{Process, command};
use crate::read_back::{Engines, Journey, Zipkin, check};
use crate::world::World;

/// `tourin up`, and the addresses that it prints.
struct Up {
    process: Process,
    url: String,
    operator: String,
}

impl Up {
    fn start() -> Self {
        let mut up = command("tourin");
        up.args(["up", "--ephemeral", "--listen", "127.0.0.1:0", "--log", "info,sqlx=warn"]);
        let process = Process::start(up);
        let last_word = |line: String| line.split_whitespace().last().unwrap().to_owned();
        let url = last_word(process.wait_for_line("  URL"));
        let operator = last_word(process.wait_for_line("  traces"));
        Self { process, url, operator }
    }
}

const EMBEDDED: Engines<'static> =
    Engines { broker: "tourin", of_core: "sqlite", of_recommendation: &["sqlite"] };

#[tokio::test]
async fn a_bookmark_is_one_trace_to_the_trend() {
    let up = Up::start();
    let journey = Journey::play(&World::at(up.url.clone())).await;
    check(&Zipkin::at(&up.operator), &journey, &EMBEDDED).await;
}

#[tokio::test]
async fn a_zipkin_trace_url_opens_the_local_trace_page() {
    let up = Up::start();
    let client = http_client::client(None).unwrap();
    let get = async |id: &str| {
        client.get(format!("{}/zipkin/traces/{id}", up.operator)).send().await.unwrap()
    };
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let led = get(TRACE).await;
    assert_eq!(led.status().as_u16(), 307);
    assert_eq!(led.headers()["location"], format!("/#{TRACE}"));
    assert_eq!(get("%2F%2Fexample.org").await.status().as_u16(), 400);
}

#[tokio::test]
async fn the_waterfall_is_shown_in_a_browser() {
    let python = std::env::var("TOURIN_BROWSER_PYTHON").unwrap_or_default();
    assert!(
        !python.is_empty(),
        "TOURIN_BROWSER_PYTHON is not set: run it by `deploy/testbed.sh run -- cargo test -p tourin`"
    );
    let up = Up::start();
    let world = World::at(up.url.clone());
    let journey = Journey::play(&world).await;
    check(&Zipkin::at(&up.operator), &journey, &EMBEDDED).await;
    world.get("/api/nothing").await.expect_error(404);
    let script = "../../deploy/traces_page.py";
    let shown = Command::new(python).arg(script).arg(&up.operator).output().unwrap();
    let said = [shown.stdout, shown.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(shown.status.success(), "{said:?}");
}

#[tokio::test]
async fn every_part_shows_its_metrics() {
    let up = Up::start();
    let client = http_client::client(None).unwrap();
    let text = async |path: &str| {
        let answer = client.get(format!("{}{path}", up.operator)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (_, list) = text("/metrics").await;
    assert_eq!(
        list.lines().collect::<Vec<_>>(),
        ["/metrics/core", "/metrics/gateway", "/metrics/recommendation-1", "/metrics/registry"]
    );
    for path in list.lines() {
        let (status, metrics) = text(path).await;
        assert_eq!(status, 200, "{path}");
        assert!(metrics.contains("tourin_panics_total 0"), "{path}: {metrics}");
    }
    let (_, registry) = text("/metrics/registry").await;
    let core = r#"tourin_registry_instances{service="core",status="up"} 1"#;
    assert!(registry.contains(core), "{registry}");
    assert_eq!(text("/metrics/nobody").await.0, 404);

    let (status, ready) = text("/readyz").await;
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(status, 200, "{ready}");
    for part in ["core", "gateway", "recommendation-1", "registry"] {
        assert_eq!(ready[part]["status"], "ready", "{ready}");
    }
    drop(up.process);
}

#[tokio::test]
async fn the_log_is_changed_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let mut up = command("tourin");
    up.args(["up", "--listen", "127.0.0.1:0", "--data-dir", data, "--no-demo", "--log", "warn"]);
    let process = Process::start(up);
    process.wait_for_line("Ctrl-C");
    let mesh = folder.path().join("mesh.toml");
    let log_level = |arguments: &[&str]| {
        let mut asked = command("tourin");
        asked.arg("log-level").args(arguments).arg("--config").arg(&mesh);
        let output = asked.output().unwrap();
        let said = [output.stdout, output.stderr];
        let said = said.map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.code(), said)
    };
    for service in ["gateway", "registry", "core", "recommendation"] {
        let (code, said) = log_level(&[service]);
        assert_eq!(code, Some(0), "{service}: {said}");
        assert!(said.starts_with(service) && said.contains("warn"), "{said}");
    }
    let (code, said) = log_level(&["core", "info,tourin_gateway=debug"]);
    assert_eq!((code, said.contains("tourin_gateway=debug")), (Some(0), true), "{said}");
    process.wait_for_line("the log filter was changed");
    assert_eq!(log_level(&["core", "=="]).0, Some(1));
    assert_eq!(log_level(&["nobody"]).0, Some(2));
}
