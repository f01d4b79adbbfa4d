//! Stores that answer but refuse writes: readiness names the store and the reason, reads continue, and the
//! service recovers by itself.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _};
use tourin_testbed::{Bed, Server, User};

use super::running::{RECOVERY, Running, hana, person, settings};

fn log_in(id: &str) -> Value {
    json!({"id": id, "password": "sea-breeze1!"})
}

/// Asserts that log-ins fail, `/readyz` has the reason, and reads continue.
async fn refuses(core: &Running, dependency: &str, store: &str, why: &str) {
    let unready = core.until_status("/readyz", 503).await;
    let reason = unready["unready"][dependency].as_str().unwrap_or_default();
    assert!(reason.starts_with(store) && reason.ends_with(why), "{unready}");
    assert_eq!(core.get("/healthz").await.0, 200, "the process is well");
    assert_eq!(core.get("/api/tour-spots?pageSize=5").await.0, 200, "reads still work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_is_named_and_log_ins_are_back_with_it() {
    let bed = Bed::with(&[Server::Mysql, Server::Redis]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &[]);
    settings.database.server.mysql_url = Some(bed.url(Server::Mysql).parse().unwrap());
    let redis = bed.url_of(User::Core, Server::Redis);
    settings.database.sessions.redis_url = Some(redis.parse().unwrap());
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 200);
    assert_eq!(core.get("/readyz").await.0, 200);

    let client = redis::Client::open(bed.url(Server::Redis)).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let limit = |bytes: &'static str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        set
    };
    limit("1").query_async::<()>(&mut admin).await.unwrap();
    refuses(&core, "redis", "redis at 127.0.0.1", ": out of memory").await;
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 503);

    limit("0").query_async::<()>(&mut admin).await.unwrap();
    core.until_status("/readyz", 200).await;
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 200);
    core.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_that_becomes_read_only_is_named_and_writes_are_back_with_it() {
    let bed = Bed::with(&[Server::Mysql]).await;
    let admin = bed.variable("TOURIN_MYSQL_ADMIN_URL");
    let mut admin = MySqlConnection::connect(admin).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &[]);
    settings.database.server.mysql_url = Some(bed.url(Server::Mysql).parse().unwrap());
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);

    admin.execute("SET GLOBAL read_only = 1").await.unwrap();
    refuses(&core, "database", "mysql at 127.0.0.1", ": read-only").await;
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 503);
    assert_eq!(core.bookmark("hana12345", 1).await.status(), 503);

    admin.execute("SET GLOBAL read_only = 0").await.unwrap();
    core.until_status("/readyz", 200).await;
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 200);
    assert_eq!(core.bookmark("hana12345", 1).await.status(), 201);
    core.stop().await;
    bed.remove().await;
}

/// A file system of a few megabytes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Panics if mounting fails: the test needs root, as the installation of the test bed does.
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m", "tourin-test"])
            .arg(folder.path())
            .status();
        let is_mounted = mounted.is_ok_and(|status| status.success());
        assert!(
            is_mounted,
            "cannot mount a small disk: run the tests as root (sudo deploy/test.sh)"
        );
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> std::path::PathBuf {
        self.path().join("filler")
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        for block in [vec![0; 1 << 16], vec![0; 512]] {
            while file.write(&block).is_ok_and(|written| written > 0) {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_log_ins_are_back_with_room_on_it() {
    let disk = SmallDisk::mount();
    let dir = disk.path().join("data");
    let core = Running::start(settings(&dir, &["--readiness-interval-ms", "500"])).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 200);
    assert_eq!(core.get("/readyz").await.0, 200);

    disk.fill();
    // The write-ahead log may still have free space.
    let deadline = Instant::now() + RECOVERY;
    let mut members = 0;
    while core.post("/api/auth/signup", person(&format!("member{members:04}"))).await.0 != 503 {
        assert!(Instant::now() < deadline, "it still writes after {members} sign-ups");
        members += 1;
    }
    refuses(&core, "database", "sqlite in ", ": disk full").await;
    let (status, refused) = core.post("/api/auth/login", log_in("hana12345")).await;
    assert_eq!(status, 503, "{refused}");

    fs::remove_file(disk.filler()).unwrap();
    core.until_status("/readyz", 200).await;
    assert_eq!(core.post("/api/auth/login", log_in("hana12345")).await.0, 200);
    assert!(core.stop().await < Duration::from_secs(12));
}
