//! What changes while a gateway runs.

use std::path::PathBuf;
use std::process::Command;

use tourin_testbed::eventually;

use crate::harness::{Mesh, Service, TestGateway};

/// A table of GET routes: path, service, and further lines.
fn table(routes: &[(&str, &str, &str)]) -> String {
    let entry = |(path, service, more): &(&str, &str, &str)| {
        format!(
            "[[route]]\npath = \"{path}\"\nservice = \"{service}\"\nmethods = {{ GET = \"public\" }}\n{more}\n"
        )
    };
    routes.iter().map(entry).collect()
}

struct Reloading {
    mesh: Mesh,
    core: Service,
    gateway: TestGateway,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Reloading {
    async fn start(routes: &[(&str, &str, &str)]) -> Self {
        let mesh = Mesh::start().await;
        let core = mesh.service("core", "core-1").await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.toml");
        std::fs::write(&file, table(routes)).unwrap();
        let path = file.clone();
        let gateway = mesh
            .gateway(|settings| {
                settings.routes = Some(path);
                settings.watch_interval_ms = 10;
            })
            .await;
        Self { mesh, core, gateway, file, _folder: folder }
    }

    fn write(&self, routes: &[(&str, &str, &str)]) {
        std::fs::write(&self.file, table(routes)).unwrap();
    }

    async fn status(&self, path: &str) -> u16 {
        self.gateway.get(path).await.status
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.gateway.admin);
        self.gateway.http.get(url).send().await.unwrap().text().await.unwrap()
    }
}

#[tokio::test]
async fn routes_change_while_requests_are_in_progress() {
    let mesh = Reloading::start(&[("/a", "core", ""), ("/b", "core", "")]).await;
    let other = mesh.mesh.service("other", "other-1").await;
    assert_eq!((mesh.status("/a").await, mesh.status("/c").await), (200, 404));
    let url = format!("{}/a?hold", mesh.gateway.url);
    let held = tokio::spawn(mesh.gateway.http.get(url).send());
    eventually("the request is in progress", || async { mesh.core.held() == 1 }).await;

    // `/a` goes, `/b` goes to a service that no route named before, `/c` is new.
    mesh.write(&[("/b", "other", ""), ("/c", "other", "")]);
    eventually("the new route is in use", || async { mesh.status("/c").await == 200 }).await;
    assert_eq!((mesh.status("/a").await, mesh.status("/b").await), (404, 200));
    assert!(other.calls() >= 2, "{}", other.calls());
    // What is in progress keeps its route.
    mesh.core.release();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);

    let lines = [
        r#"tourin_gateway_reloads_total{what="routes",result="applied"} 1"#,
        r#"tourin_gateway_reload_refused{what="routes"} 0"#,
        r#"tourin_gateway_upstream_instances{upstream="other"} 1"#,
    ];
    eventually("metrics follow", || async {
        let metrics = mesh.metrics().await;
        let core = metrics.contains(r#"tourin_gateway_upstream_instances{upstream="core"}"#);
        if !core && lines.iter().all(|line| metrics.contains(line)) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test]
async fn the_api_description_follows_the_routes() {
    let user = ("/api/users/{userId}", "core", "");
    let mesh = Reloading::start(&[user]).await;
    let _other = mesh.mesh.service("recommendation", "recommendation-1").await;
    let trend = ("/api/recommendations/trend", "recommendation", "");
    for (routes, described) in [
        (vec![user], [true, false]),
        (vec![user, trend], [true, true]),
        (vec![trend], [false, true]),
    ] {
        mesh.write(&routes);
        eventually("the API description follows", || async {
            let paths = mesh.gateway.get("/api/openapi.json").await.body["paths"].clone();
            [user.0, trend.0].map(|path| paths.get(path).is_some()) == described
        })
        .await;
    }
}

#[tokio::test]
async fn a_bad_table_is_refused_whole_and_the_old_one_stays() {
    let mesh = Reloading::start(&[("/a", "core", "")]).await;
    for text in [
        table(&[("/b", "core", "")]) + "[[route]]\npath = \"/c\"\n",
        table(&[("/b", "core", ""), ("/b", "core", "")]),
        table(&[("/b", "core", "colour = 1")]),
        String::new(),
    ] {
        std::fs::write(&mesh.file, &text).unwrap();
        let refused = r#"tourin_gateway_reload_refused{what="routes"} 1"#;
        eventually("the table is refused", || async { mesh.metrics().await.contains(refused) })
            .await;
        assert_eq!((mesh.status("/a").await, mesh.status("/b").await), (200, 404), "{text}");
        mesh.write(&[("/a", "core", "")]);
        let fine = r#"tourin_gateway_reload_refused{what="routes"} 0"#;
        eventually("the table is accepted", || async { mesh.metrics().await.contains(fine) }).await;
    }
}

#[tokio::test]
async fn counts_of_a_rate_survive_a_reload() {
    let limited = ("/a", "core", "rate_per_minute = 2");
    let mesh = Reloading::start(&[limited]).await;
    for status in [200, 200, 429] {
        assert_eq!(mesh.status("/a").await, status);
    }
    mesh.write(&[limited, ("/b", "core", "")]);
    eventually("the new route is in use", || async { mesh.status("/b").await == 200 }).await;
    assert_eq!(mesh.status("/a").await, 429);
    // Another rate begins anew.
    mesh.write(&[("/a", "core", "rate_per_minute = 60"), ("/c", "core", "")]);
    eventually("the new route is in use", || async { mesh.status("/c").await == 200 }).await;
    assert_eq!(mesh.status("/a").await, 200);
}

#[tokio::test]
async fn a_table_is_checked_without_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.toml");
    let check = |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_gateway");
        let output = Command::new(program).arg("--check").arg(&file).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = check(None);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(error.starts_with("error: cannot read ") && error.contains("routes.toml"), "{error}");

    let (code, out, error) = check(Some(&table(&[("/a", "core", ""), ("/b", "other", "")])));
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(out.contains("routes.toml: 2 routes to core, other; version "), "{out}");

    let (code, _, error) = check(Some(&table(&[("/a", "core", "colour = 1")])));
    assert_eq!(code, Some(2));
    assert!(error.contains("routes.toml: line 5: unknown field `colour`"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
