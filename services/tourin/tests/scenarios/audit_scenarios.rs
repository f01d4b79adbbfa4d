//! `tourin audit` on a mesh that keeps its word, and on one that does not.

use std::time::Duration;

use tourin::audit::{Audit, AuditSettings};
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::shutdown::Shutdown;

use crate::process::command;
use crate::world::{World, eventually};

async fn mesh() -> Mesh {
    Mesh::start(UpSettings::ephemeral(), Shutdown::new()).await.expect("the mesh starts")
}

fn settings(mesh: &Mesh) -> AuditSettings {
    AuditSettings {
        duration: Duration::from_secs(3),
        rate: 100,
        members: 8,
        ..AuditSettings::new(mesh.url(), mesh.registry_url(), mesh.data_dir().secret().unwrap())
    }
}

/// The program's exit code and what it printed.
async fn program(mesh: &Mesh, duration: &str) -> (Option<i32>, String) {
    let mut audit = command("tourin");
    audit.args(["audit", "--gateway", &mesh.url(), "--duration", duration, "--rate", "50"]);
    audit.args(["--members", "4", "--settle", "3s", "--config"]);
    audit.arg(mesh.data_dir().path().join("mesh.toml"));
    let run = tokio::task::spawn_blocking(move || audit.output().expect("it runs"));
    let output = run.await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_keeps_its_word_shows_no_difference() {
    let mesh = mesh().await;
    let audit = Audit::prepare(settings(&mesh)).await.unwrap();
    audit.drive(&Shutdown::new()).await.unwrap();
    let report = audit.conclude().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.played.requests, report.failed(), report.retries), (300, 0, 0), "{report}");
    let comparison = &report.comparison;
    for (row, least) in [
        (comparison.bookmarks, 50),
        (comparison.removals, 10),
        (comparison.reviews, 10),
        (comparison.deleted_reviews, 5),
        (comparison.trend_effects, 100),
        (comparison.replica_entries, 50),
    ] {
        assert!(row.found >= least && row.found == row.acknowledged, "{report}");
    }
    let removed = comparison.removals.acknowledged;
    assert_eq!(comparison.trend_effects.found, comparison.bookmarks.found + removed, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_prints_a_table_and_ends_with_0() {
    let mesh = mesh().await;
    let (code, text) = program(&mesh, "1s").await;
    assert_eq!(code, Some(0), "{text}");
    for words in ["acknowledged", "trend effects", "replica entries", "p99", "no difference"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // A second one finds the first one's effects there, and tells them from its own.
    let (code, text) = program(&mesh, "1s").await;
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_the_audit_did_not_cause_ends_it_with_1() {
    let mesh = mesh().await;
    let world = World::at(mesh.url());
    let visits = async {
        // It has read the scores once its members sign up.
        eventually(|| async {
            let members = world.get("/api/users?query=audit").await.expect(200);
            if members.as_array().unwrap().is_empty() { Err(()) } else { Ok(()) }
        })
        .await;
        for page in 1..=5 {
            let path = format!("/api/tour-spots?pageNo={page}&pageSize=100");
            for spot in crate::world::ids(&world.get(&path).await.expect(200)) {
                world.get(&format!("/api/tour-spots/{spot}")).await.expect(200);
            }
        }
    };
    let ((code, text), ()) = tokio::join!(program(&mesh, "2s"), visits);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("differences:") && text.contains(" more\n"), "{text}");
    assert!(text.contains("for which nothing was done"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_was_lost_is_named() {
    let mesh = mesh().await;
    let audit =
        Audit::prepare(AuditSettings { settle: Duration::from_secs(10), ..settings(&mesh) });
    let audit = audit.await.unwrap();
    audit.drive(&Shutdown::new()).await.unwrap();
    assert!(audit.conclude().await.is_clean());

    let file = mesh.data_dir().path().join("recommendation.db");
    let database = tourin_shared_events::sqlite::Database::open(&file, 1).await.unwrap();
    let (member, spot): (String, i64) = sqlx::query_as(
        "SELECT member, spot_id FROM interactions
         WHERE member = ? AND bookmarked = 1 AND viewed_at IS NULL LIMIT 1",
    )
    .bind(&audit.members()[0])
    .fetch_one(database.reader())
    .await
    .unwrap();
    let mut change = database.write().await.unwrap();
    sqlx::query("DELETE FROM interactions WHERE member = ? AND spot_id = ?")
        .bind(&member)
        .bind(spot)
        .execute(&mut *change)
        .await
        .unwrap();
    change.commit().await.unwrap();

    let report = audit.conclude().await;
    assert!(!report.is_clean());
    assert_eq!(report.comparison.replica_entries.missing, 1, "{report}");
    let named = format!("spot {spot} of {member}: not there");
    assert!(report.comparison.differences[0].contains(&named), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_one_line_and_exit_code_2() {
    let mesh = mesh().await;
    let secret = mesh.data_dir().secret().unwrap();
    let (url, registry) = (mesh.url(), mesh.registry_url());
    let cases: [(&[&str], &str); 5] = [
        (&["--gateway", &url, "--registry-url", &registry], "--registration-secret"),
        (&["--gateway", &url, "--rate", "0"], "--rate"),
        (&["--gateway", &url, "--duration", "20"], "--duration"),
        (&["--gateway", "http://127.0.0.1:1", "--tries", "1"], "127.0.0.1:1"),
        (&["--gateway", &url, "--registry-url", &registry], "effects"),
    ];
    for (number, (arguments, named)) in cases.into_iter().enumerate() {
        let mut audit = command("tourin");
        audit.arg("audit").args(arguments);
        match number {
            0 => {}
            4 => drop(audit.args(["--registration-secret", "not-the-secret-of-this-mesh"])),
            _ => drop(audit.args(["--registration-secret", secret.expose()])),
        }
        let run = tokio::task::spawn_blocking(move || audit.output().expect("it runs"));
        let output = run.await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}
