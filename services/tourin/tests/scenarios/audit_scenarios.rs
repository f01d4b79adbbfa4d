//! `tourin audit` on a mesh that works, and on one that loses or repeats writes.

use std::time::Duration;

use tourin::audit::settling::WaitOutcome;
use tourin::audit::{Audit, AuditSettings};
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::eventually;

use crate::peers::Operator;
use crate::process::{Process, command};
use crate::world::{World, access};

async fn mesh() -> Mesh {
    let mut settings = UpSettings::ephemeral();
    // The audit does not wait for responses: on a busy machine many requests are in flight at once.
    settings.parts.gateway.max_requests_per_client = 1_024;
    // They may all be slow there, which is no reason to refuse them.
    settings.parts.gateway.breaker.breaker_slow_call_ms = 60_000;
    Mesh::start(settings, Shutdown::new()).await.expect("the mesh starts")
}

fn settings(mesh: &Mesh) -> AuditSettings {
    AuditSettings {
        duration: Duration::from_secs(3),
        rate: 100,
        members: 8,
        ..AuditSettings::new(mesh.url(), access(mesh))
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
async fn a_correct_mesh_shows_no_difference() {
    let mesh = mesh().await;
    let audit = Audit::prepare(settings(&mesh)).await.unwrap();
    audit.drive(&Shutdown::new()).await.unwrap();
    let report = audit.conclude().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.stats.requests, report.failed(), report.retries), (300, 0, 0), "{report}");
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
    // A second audit is not disturbed by the first one's effects.
    let (code, text) = program(&mesh, "1s").await;
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_the_audit_did_not_cause_ends_it_with_1() {
    let mesh = mesh().await;
    let world = World::at(mesh.url());
    let visits = async {
        // The audit reads the scores before its members sign up.
        eventually("the audit's members are there", || async {
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

/// An audit whose requests were made while recommendation's file was locked, and the lock.
async fn audited_while_held(
    mesh: &Mesh,
    settings: AuditSettings,
) -> (Audit, sqlx::Transaction<'static, sqlx::Sqlite>) {
    let short = AuditSettings { duration: Duration::from_millis(500), ..settings };
    let audit = Audit::prepare(short).await.unwrap();
    let file = mesh.data_dir().path().join("recommendation.db");
    let database = tourin_shared_events::sqlite::Database::open(&file, 1).await.unwrap();
    let hold = database.write().await.unwrap();
    audit.drive(&Shutdown::new()).await.unwrap();
    (audit, hold)
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_that_come_after_they_were_due_are_late_and_not_missing() {
    let mesh = mesh().await;
    let settle = Duration::from_secs(3);
    let (audit, hold) =
        audited_while_held(&mesh, AuditSettings { settle, ..settings(&mesh) }).await;
    let mut progress = audit.progress();
    let release = async {
        let overdue = *progress.wait_for(|now| now.is_overdue).await.unwrap();
        hold.rollback().await.unwrap();
        overdue
    };
    let (report, overdue) = tokio::join!(audit.conclude(), release);
    // The differences at the time when effects were due.
    assert!(overdue.differences > 10, "{overdue:?}");
    assert!(overdue.backlog.is_some_and(|backlog| backlog.outbox > 10), "{overdue:?}");
    assert!(report.is_clean(), "{report}");
    let comparison = &report.comparison;
    assert!(comparison.trend_effects.late > 0 || comparison.replica_entries.late > 0, "{report}");
    assert!(report.late_by.is_some_and(|late_by| late_by > settle), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_at_the_end_of_the_audit_leaves_it_open() {
    let mesh = mesh().await;
    let (settle, max_wait) = (Duration::from_millis(500), Duration::from_millis(1_500));
    let settings = AuditSettings { settle, max_wait, ..settings(&mesh) };
    let (audit, hold) = audited_while_held(&mesh, settings).await;
    let report = audit.conclude().await;
    hold.rollback().await.unwrap();
    assert!(report.is_open() && !report.is_clean(), "{report}");
    assert!(matches!(report.outcome, WaitOutcome::Stalled | WaitOutcome::OutOfTime), "{report}");
    let replica = report.comparison.replica_entries;
    assert!(replica.waiting > 0 && replica.missing == 0, "{report}");
    // After the lock the effects arrive.
    eventually("nothing differs", async || {
        let report = audit.conclude().await;
        if report.comparison.differences.is_empty() { Ok(()) } else { Err(report.to_string()) }
    })
    .await;
}

/// A program's `tourin up` on a folder.
fn up(folder: &std::path::Path, listen: &str) -> Process {
    let mut up = command("tourin");
    up.args(["up", "--listen", listen, "--data-dir"]).arg(folder);
    let up = Process::start(up);
    up.wait_for_line("Tourin is ready");
    up
}

async fn stop(mut process: Process) {
    process.signal("TERM");
    assert!(process.wait(Duration::from_secs(20)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_follows_a_mesh_that_is_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let mesh_file = folder.path().join("mesh.toml");
    let registry = || {
        let text = std::fs::read_to_string(&mesh_file).unwrap();
        text.lines().next().unwrap().to_owned()
    };
    let listen = tourin_testbed::free_address().to_string();
    let first = up(folder.path(), &listen);
    let at_first = registry();
    stop(first).await;
    let second = up(folder.path(), &listen);
    assert_eq!(registry(), at_first, "a restart keeps the ports");

    let mut audit = command("tourin");
    audit.args(["audit", "--gateway", &format!("http://{listen}"), "--duration", "4s"]);
    audit.args(["--rate", "40", "--members", "4", "--config"]).arg(&mesh_file);
    let mut audit = Process::start(audit);
    let world = World::at(format!("http://{listen}"));
    eventually("the second audit's members are there", || async {
        let members = world.get("/api/users?query=audit").await.expect(200);
        if members.as_array().unwrap().len() == 4 { Ok(()) } else { Err(members) }
    })
    .await;
    stop(second).await;
    // Another process takes the registry's port and does not answer.
    let (_, address) = at_first.split_once("https://").unwrap();
    let _taken = std::net::TcpListener::bind(address.trim_end_matches('"')).unwrap();
    let third = up(folder.path(), &listen);
    assert_ne!(registry(), at_first);
    let ended = audit.wait(Duration::from_secs(60)).await;
    audit.wait_for_line("no difference");
    assert!(ended.success());
    stop(third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_start_exits_with_2_and_one_line() {
    let mesh = mesh().await;
    let operators = access(&mesh).join_token().unwrap();
    let cores = Operator::of(access(&mesh)).await.token("core", None).await;
    let (claims, _) = operators.rsplit_once('.').unwrap();
    let (_, signature) = cores.rsplit_once('.').unwrap();
    let forged = format!("{claims}.{signature}");
    let (url, registry) = (mesh.url(), mesh.registry_url());
    let through = ["--gateway", &url, "--registry-url", &registry];
    let nobody = ["--gateway", "http://127.0.0.1:1", "--registry-url", &registry, "--tries", "1"];
    let cases: [(&[&str], Option<&str>, &str); 6] = [
        (&through, None, "--join-token-file"),
        (&through, Some(&forged), "the registry does not let it join"),
        (&through, Some(&cores), "the join token is for core"),
        (&["--gateway", &url, "--rate", "0"], Some(&operators), "--rate"),
        (&["--gateway", &url, "--duration", "20"], Some(&operators), "--duration"),
        (&nobody, Some(&operators), "127.0.0.1:1"),
    ];
    for (arguments, token, named) in cases {
        let mut audit = command("tourin");
        audit.arg("audit").args(arguments);
        if let Some(token) = token {
            audit.env("TOURIN_JOIN_TOKEN", token);
        }
        let run = tokio::task::spawn_blocking(move || audit.output().expect("it runs"));
        let output = run.await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}
