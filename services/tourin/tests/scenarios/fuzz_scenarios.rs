//! Random requests, which schemathesis generates from the OpenAPI document: no 5xx, and only responses that
//! the document describes.

use std::path::PathBuf;

use crate::world::World;

/// Test cases per call and kind of data, which bounds the run.
const EXAMPLES: &str = "25";
/// Every run has the same cases, so that a failure can be reproduced.
const SEED: &str = "20261122";

fn schemathesis() -> PathBuf {
    let program = std::env::var_os("TOURIN_SCHEMATHESIS").map(PathBuf::from).expect(
        "schemathesis is not installed: run the tests by deploy/test.sh, or any one of them by \
         `deploy/testbed.sh run -- cargo test ...`",
    );
    assert!(program.exists(), "{} is not there: run deploy/testbed.sh install", program.display());
    program
}

/// Runs schemathesis over the document, except for the calls in `without`.
async fn fuzz(world: &World, token: Option<&str>, without: &[&str]) {
    world.description().await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(schemathesis());
    command
        .current_dir(folder.path())
        .arg("run")
        .arg(format!("{}/api/openapi.json", world.url))
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES])
        .args(["--seed", SEED, "--generation-database", "none", "--request-timeout", "15"])
        .args(["--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,\
             response_headers_conformance,response_schema_conformance",
        ]);
    if let Some(token) = token {
        command.args(["--header", &format!("Authorization:Bearer {token}")]);
    }
    for path in without {
        command.args(["--exclude-path", path]);
    }
    let output = command.kill_on_drop(true).output().await.expect("schemathesis runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(report.contains("generated"), "nothing was tried: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_get_documented_responses() {
    let world = World::start().await;
    fuzz(&world, None, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_from_a_member_is_answered_as_described() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    world.bookmark(&member, "1").await;
    // Without the calls that would end the session.
    let ends_the_session = ["/api/auth/logout", "/api/auth/delete-account"];
    fuzz(&world, Some(&member.access), &ends_the_session).await;
    world.get_as(&member, "/api/auth/me").await.expect(200);
}
