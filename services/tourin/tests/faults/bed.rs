//! Servers that a test may stop: a test bed that nobody else uses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const READY: &str = "the bed is up";
/// What the bed is kept for: it says where the servers are, and ends with its standard input, which
/// is this process's end at the latest.
const KEEPER: &str = "env | grep ^TOURIN_; echo 'the bed is up'; exec cat >&2";
/// The servers that `deploy/testbed.sh` starts unless they are given.
const GIVEN: [&str; 6] = [
    "TOURIN_MYSQL_URL",
    "TOURIN_REDIS_URL",
    "TOURIN_MONGODB_URL",
    "TOURIN_AMQP_URL",
    "TOURIN_AMQP_API_URL",
    "TOURIN_TESTBED_STATE",
];

pub struct Bed {
    // Its standard input is held open.
    _keeper: Child,
    variables: BTreeMap<String, String>,
}

impl Bed {
    /// Starts the servers, which takes half a minute.
    pub fn start() -> Self {
        let mut command = Command::new(script());
        command.args(["run", "--", "sh", "-c", KEEPER]);
        // The caller's own bed is not for stopping servers.
        for name in GIVEN {
            command.env_remove(name);
        }
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("deploy/testbed.sh runs");
        let lines = BufReader::new(keeper.stdout.take().expect("piped")).lines();
        let mut variables = BTreeMap::new();
        let mut is_up = false;
        for line in lines.map_while(Result::ok) {
            if line == READY {
                is_up = true;
                break;
            }
            if let Some((name, value)) = line.split_once('=') {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        assert!(is_up, "deploy/testbed.sh could not start its servers; its words are above");
        Self { _keeper: keeper, variables }
    }

    /// One of the variables that the bed exports.
    #[track_caller]
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("the bed does not say {name}"))
    }

    /// The folder that goes with the bed.
    pub fn folder(&self) -> PathBuf {
        self.variable("TOURIN_TESTBED_STATE").into()
    }

    /// Stops a server (`mysql`, `redis`, `mongodb`, `amqp`) in good order; its data stays.
    pub async fn stop(&self, server: &str) {
        self.order("stop", server).await;
    }

    /// Starts a server that was stopped and waits until it answers; leaves one alone that runs.
    pub async fn start_again(&self, server: &str) {
        self.order("start", server).await;
    }

    async fn order(&self, order: &str, server: &str) {
        let done = tokio::process::Command::new(script())
            .args([order, server])
            .env("TOURIN_TESTBED_STATE", self.folder())
            .stdin(Stdio::null())
            .status()
            .await
            .expect("deploy/testbed.sh runs");
        assert!(done.success(), "deploy/testbed.sh {order} {server}: {done}");
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/testbed.sh").canonicalize().unwrap()
}
