//! A private bed of servers that may be stopped, killed and started again.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

/// The bed of this test process. It ends with the process, whose end it sees by its standard input.
static BED: AsyncMutex<Option<Bed>> = AsyncMutex::const_new(None);
/// Keeps the bed's process and with it the pipe.
static OWNER: Mutex<Option<Child>> = Mutex::new(None);

/// Where the servers are.
#[derive(Clone, Debug)]
pub struct Bed {
    pub redis_url: String,
    pub mongodb_url: String,
    pub amqp_url: String,
    state: String,
}

/// The bed, for one test at a time: whoever stops a server must not disturb another.
pub struct Held(MutexGuard<'static, Option<Bed>>);

impl std::ops::Deref for Held {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        self.0.as_ref().expect("it is held once it is made")
    }
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/testbed.sh")
}

impl Bed {
    /// The bed with all of its servers running.
    pub async fn hold() -> Held {
        let mut bed = BED.lock().await;
        match bed.as_ref() {
            // A test that failed may have left servers down.
            Some(bed) => ["redis", "mongodb", "amqp"].iter().for_each(|name| bed.start(name)),
            None => *bed = Some(Self::make()),
        }
        Held(bed)
    }

    fn make() -> Self {
        let tell = "printf '%s\\n' \"$TOURIN_REDIS_URL\" \"$TOURIN_MONGODB_URL\" \
                    \"$TOURIN_AMQP_URL\" \"$TOURIN_TESTBED_STATE\"; exec cat";
        let mut owner = Command::new(program())
            .args(["run", "--", "bash", "-c", tell])
            // Not the servers of whoever runs the tests: these are stopped. One that is not needed
            // is said to be there, so that it is not started.
            .env_remove("TOURIN_REDIS_URL")
            .env_remove("TOURIN_MONGODB_URL")
            .env_remove("TOURIN_AMQP_URL")
            .env_remove("TOURIN_AMQP_API_URL")
            .env_remove("TOURIN_TESTBED_STATE")
            .env("TOURIN_MYSQL_URL", "none")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("deploy/testbed.sh starts");
        let mut lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
        let mut line =
            || lines.next().expect("the bed starts, see above").expect("the bed tells its URLs");
        let bed = Self { redis_url: line(), mongodb_url: line(), amqp_url: line(), state: line() };
        *OWNER.lock().expect("nobody panics with it") = Some(owner);
        bed
    }

    fn order(&self, order: &str, server: &str) {
        let status = Command::new(program())
            .args([order, server])
            .env("TOURIN_TESTBED_STATE", &self.state)
            .status()
            .expect("deploy/testbed.sh starts");
        assert!(status.success(), "{order} {server}: {status}");
    }

    /// SIGKILL.
    pub fn kill(&self, server: &str) {
        self.order("kill", server);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self, server: &str) {
        self.order("stop", server);
    }

    /// Starts a server on what it has kept, and waits until it answers.
    pub fn start(&self, server: &str) {
        self.order("start", server);
    }
}
