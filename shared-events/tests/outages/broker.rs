//! A private broker that can be killed and started again, by deploy/testbed.sh.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use tourin_shared_events::bus::rabbitmq::{AmqpUrl, RabbitSettings};

const TESTBED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/testbed.sh");
/// Installing, if need be, and starting.
const START: Duration = Duration::from_secs(300);

/// Ends with its owner: the bed lasts for as long as the command in it has an input to read.
pub struct Broker {
    url: AmqpUrl,
    bed: String,
    _run: Child,
    _input: ChildStdin,
}

impl Broker {
    pub async fn start() -> Self {
        let mut command = Command::new(TESTBED);
        let script = r#"printf '%s\n%s\n' "$TOURIN_AMQP_URL" "$TOURIN_TESTBED_STATE"; exec cat"#;
        command.args(["run", "--", "bash", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A server that is given by a URL is not started, and the others are not needed here.
        command.env_remove("TOURIN_AMQP_URL").env_remove("TOURIN_AMQP_API_URL");
        for other in ["TOURIN_MYSQL_URL", "TOURIN_REDIS_URL", "TOURIN_MONGODB_URL"] {
            command.env(other, "not-needed");
        }
        let mut run = command.spawn().expect("deploy/testbed.sh");
        let input = run.stdin.take().expect("an input");
        let mut lines = BufReader::new(run.stdout.take().expect("an output")).lines();
        let mut line = async || {
            let line = timeout(START, lines.next_line()).await.expect("a broker in time");
            line.expect("an output").expect("a broker: deploy/testbed.sh says why there is none")
        };
        let (url, bed) = (line().await, line().await);
        let url = url.parse().expect("an AMQP URL");
        Self { url, bed, _run: run, _input: input }
    }

    pub fn settings(&self) -> RabbitSettings {
        RabbitSettings::new(self.url.clone())
    }

    /// SIGKILL: nothing is said and nothing is saved.
    pub async fn kill(&self) {
        self.testbed("kill").await;
    }

    /// SIGTERM: the broker closes its connections and ends.
    pub async fn stop(&self) {
        self.testbed("stop").await;
    }

    /// Starts it again on its data, and waits until it answers.
    pub async fn start_again(&self) {
        self.testbed("start").await;
    }

    async fn testbed(&self, what: &str) {
        let mut command = Command::new(TESTBED);
        command.args([what, "amqp"]).env("TOURIN_TESTBED_STATE", &self.bed);
        let status = command.status().await.expect("deploy/testbed.sh");
        assert!(status.success(), "deploy/testbed.sh {what} amqp: {status}");
    }
}
