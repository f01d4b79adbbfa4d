//! The API description, checked by a linter, by a generator of clients, and by comparing responses with it.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::world::{Response, World};

/// Headers of HTTP itself, which the description does not list.
const OF_EVERY_MESSAGE: [&str; 5] =
    ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// A folder with the description, and the tools where Node looks for them.
async fn workbench(world: &World) -> tempfile::TempDir {
    let tools = std::env::var_os("TOURIN_OPENAPI_TOOLS").map(PathBuf::from).expect(
        "redocly and openapi-typescript are not installed: run the tests by deploy/test.sh, or any \
         one of them by `deploy/testbed.sh run -- cargo test ...`",
    );
    assert!(tools.exists(), "{} is not there: run deploy/testbed.sh install", tools.display());
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&tools, folder.path().join("node_modules")).unwrap();
    let description = world.description().await;
    std::fs::write(folder.path().join("openapi.json"), description.to_string()).unwrap();
    folder
}

/// Runs one of the tools, and returns its output.
async fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(folder.join("node_modules/.bin").join(program))
        .current_dir(folder)
        .args(arguments)
        .env("REDOCLY_TELEMETRY", "off")
        .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {printed}\n{errors}");
    printed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linter_with_its_recommended_rules_finds_nothing() {
    let world = World::start().await;
    let folder = workbench(&world).await;
    std::fs::write(folder.path().join("redocly.yaml"), "extends: [recommended]\n").unwrap();
    let report = run(folder.path(), "redocly", &["lint", "openapi.json", "--format", "json"]).await;
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{report}"));
    let totals = &report["totals"];
    assert_eq!((&totals["errors"], &totals["warnings"]), (&json!(0), &json!(0)), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_client_compiles_and_works() {
    let world = World::start().await;
    let folder = workbench(&world).await;
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("package.json", r#"{"private": true, "type": "module"}"#);
    write("client.ts", include_str!("client.ts"));
    run(folder.path(), "openapi-typescript", &["openapi.json", "--output", "api.ts"]).await;
    let strictly = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"];
    let for_node = ["--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"];
    run(folder.path(), "tsc", &[&strictly[..], &for_node, &["client.ts"]].concat()).await;
    let output = Command::new("node")
        .current_dir(folder.path())
        .args(["client.js", &world.url])
        .kill_on_drop(true)
        .output()
        .await
        .expect("node runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Checks that the description names the answer's status for the call, and all of its headers.
#[track_caller]
fn assert_described(description: &Value, (method, path): (&str, &str), answer: &Response) {
    let responses = &description["paths"][path][method]["responses"];
    let status = answer.status.as_u16().to_string();
    let response = resolve(description, &responses[&status]);
    assert!(response.is_object(), "{method} {path} {status} is not described");
    let headers = response["headers"].as_object().cloned().unwrap_or_default();
    for name in answer.headers.keys().map(reqwest::header::HeaderName::as_str) {
        let is_known = OF_EVERY_MESSAGE.contains(&name)
            || headers.keys().any(|known| known.eq_ignore_ascii_case(name));
        assert!(is_known, "{method} {path} {status}: {name} is not described");
    }
    for (name, header) in &headers {
        if resolve(description, header)["required"] == true {
            answer.header(name);
        }
    }
}

fn resolve<'a>(description: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
        Some(pointer) => description.pointer(pointer).expect("what is referred to"),
        None => value,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_and_header_is_described() {
    let world = World::start().await.filled().await;
    let description = world.description().await;
    let check =
        |call: (&str, &str), answer: Response| assert_described(&description, call, &answer);
    let hana = world.member("traveller1").await;

    let account = json!({
        "id": "traveller2", "password": crate::world::PASSWORD, "name": "Traveller",
        "email": "traveller2@example.com",
    });
    let sign_up = ("post", "/api/auth/signup");
    check(sign_up, world.post("/api/auth/signup", account).await);
    check(sign_up, world.post("/api/auth/signup", json!([])).await);
    let untyped = world.request(Method::POST, "/api/auth/signup").body("{}");
    check(sign_up, world.send(untyped).await);
    let log_in = ("post", "/api/auth/login");
    for password in [crate::world::PASSWORD, "wrong"] {
        let body = json!({"id": "traveller2", "password": password});
        check(log_in, world.post("/api/auth/login", body).await);
    }
    let reissue = ("post", "/api/auth/reissue");
    for token in [hana.refresh.as_str(), "unknown"] {
        let body = json!({"refreshToken": token});
        check(reissue, world.post("/api/auth/reissue", body).await);
    }
    for (call, path) in [
        ("/api/auth/me", "/api/auth/me"),
        ("/.well-known/jwks.json", "/.well-known/jwks.json"),
        ("/api/openapi.json", "/api/openapi.json"),
        ("/api/users", "/api/users"),
        ("/api/users", "/api/users?pageNo=0"),
        ("/api/tour-spots", "/api/tour-spots"),
        ("/api/tour-spots", "/api/tour-spots?tags=sea"),
        ("/api/tour-spots", "/api/tour-spots?customFilters=bookmarked"),
        ("/api/tour-spots/{id}", "/api/tour-spots/1"),
        ("/api/tour-spots/{id}", "/api/tour-spots/nowhere"),
        ("/api/tour-spots/{id}/similar", "/api/tour-spots/1/similar"),
        ("/api/tour-spots/{id}/similar", "/api/tour-spots/1/similar?k=-1"),
        ("/api/recommendations/trend", "/api/recommendations/trend"),
    ] {
        check(("get", call), world.get(path).await);
        check(("get", call), world.get_as(&hana, path).await);
    }
    let bookmarks = "/api/users/traveller1/bookmarks";
    let place = ("post", "/api/users/{userId}/bookmarks");
    for spot in ["1", "nowhere"] {
        check(place, world.post_as(&hana, bookmarks, json!({"tourSpotId": spot})).await);
    }
    check(place, world.post(bookmarks, json!({"tourSpotId": "1"})).await);
    let others = "/api/users/traveller2/bookmarks";
    check(place, world.post_as(&hana, others, json!({"tourSpotId": "1"})).await);
    let remove = ("delete", "/api/users/{userId}/bookmarks/{tourSpotId}");
    for _ in 0..2 {
        check(remove, world.delete_as(&hana, &format!("{bookmarks}/1")).await);
    }
    let log_out = ("post", "/api/auth/logout");
    check(log_out, world.post_as(&hana, "/api/auth/logout", Value::Null).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_every_part_are_in_the_readers_language() {
    let world = World::start().await.filled().await;
    for (path, korean) in [
        // The gateway, core and recommendation, in this order.
        ("/api/auth/me", "로그인이 필요합니다. 먼저 로그인해 주십시오."),
        ("/api/tour-spots/nowhere", "해당 관광지를 찾을 수 없습니다."),
        ("/api/tour-spots/1/similar?k=many", "k 값은 0부터 100까지의 정수 하나여야 합니다."),
    ] {
        for (languages, language) in
            [("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", "ko"), ("en-US,en;q=0.9", "en"), ("fr", "en")]
        {
            let request = world.request(Method::GET, path).header("accept-language", languages);
            let answer = world.send(request).await;
            let status = answer.status.as_u16();
            assert_eq!(answer.header("content-language"), language, "{path}");
            let varies = answer.headers.get_all("vary").iter();
            assert!(varies.into_iter().any(|v| v == "accept-language"), "{path}: {answer:?}");
            let message = answer.expect_error(status);
            assert_eq!(message == korean, language == "ko", "{path}: {message}");
        }
    }
}
