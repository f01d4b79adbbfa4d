//! Servers of a test's own, which it may stop, kill and start.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Everything that a bed can start.
const SERVERS: [&str; 4] = ["mysql", "redis", "mongodb", "amqp"];
/// How long the bed may take to start or stop a server.
const LIMIT: Duration = Duration::from_secs(150);

/// A bed with one server, which ends with this value.
pub struct Bed {
    server: &'static str,
    /// Where the server is.
    pub url: String,
    state: String,
    /// The bed ends when this one's standard input does.
    running: Child,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/testbed.sh")
}

fn variable(server: &str) -> String {
    format!("TOURIN_{}_URL", server.to_uppercase())
}

impl Bed {
    /// Starts the server, and no other.
    pub async fn with(server: &'static str) -> Self {
        let mut command = Command::new(script());
        let tell = format!("echo \"${}\"; echo \"$TOURIN_TESTBED_STATE\"; cat", variable(server));
        command.args(["run", "--", "bash", "-c", &tell]);
        for other in SERVERS {
            // What has an address already is not started.
            command.env(variable(other), "unused");
        }
        command.env_remove(variable(server));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(false);
        let mut running = command.spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let mut line = async || {
            let line = timeout(LIMIT, lines.next_line()).await;
            line.expect("the bed took too long").unwrap().expect("the bed did not start")
        };
        let (url, state) = (line().await, line().await);
        Self { server, url, state, running }
    }

    /// `stop`, `kill` or `start`; a start comes back when the server answers.
    pub async fn tell(&self, what: &str) {
        let mut command = Command::new(script());
        command.args([what, self.server]).env("TOURIN_TESTBED_STATE", &self.state);
        let status = timeout(LIMIT, command.status()).await.expect("the bed took too long");
        assert!(status.unwrap().success(), "{what} {}", self.server);
    }

    /// Ends it and waits until it is gone.
    pub async fn remove(mut self) {
        drop(self.running.stdin.take());
        assert!(timeout(LIMIT, self.running.wait()).await.unwrap().unwrap().success());
    }
}
