//! Servers of a test's own, which it may stop, kill and start again.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::{Server, quorum_queues};

/// What the bed is kept for: it says where the servers are, and ends with its standard input, which
/// is the end of this process at the latest.
const KEEPER: &str = "env | grep ^TOURIN_; echo 'the bed is up'; exec cat >&2";
const READY: &str = "the bed is up";
const STATE: &str = "TOURIN_TESTBED_STATE";
/// How long the bed may take to install what is missing and to start.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long it may take to start or end one server, or to end itself.
const ORDER_LIMIT: Duration = Duration::from_secs(150);

/// How a server ends; its data stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGKILL: nothing is said and nothing is saved.
    Kill,
    /// SIGTERM: in good order.
    Stop,
}

/// Private servers, started by `deploy/testbed.sh`. They end when this value is dropped or its
/// process ends, however that comes; [`Bed::remove`] also waits until they are gone.
///
/// It is not bound to the runtime that it was made in.
#[derive(Debug)]
pub struct Bed {
    // Its standard input is held open.
    keeper: Child,
    variables: BTreeMap<String, String>,
}

impl Bed {
    /// Starts these servers and no others, and waits until each of them answers: half a minute.
    ///
    /// # Panics
    ///
    /// If they do not start; `deploy/testbed.sh` has said why on standard error.
    pub async fn with(servers: &[Server]) -> Self {
        let mut command = Command::new(script());
        command.args(["run", "--", "sh", "-c", KEEPER]);
        // Servers that are given by the environment must not be stopped.
        command.env_remove("TOURIN_AMQP_API_URL").env_remove(STATE);
        for server in Server::ALL {
            if servers.contains(&server) {
                command.env_remove(server.variable());
            } else {
                // What has an address already is not started.
                command.env(server.variable(), "not-needed");
            }
        }
        let starting = spawn_blocking(move || Self::keep(command));
        let started = timeout(START_LIMIT, starting).await.expect("the bed starts in time");
        started.expect("the bed starts: its own words are above")
    }

    fn keep(mut command: Command) -> Self {
        let keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let keeper = keeper.expect("deploy/testbed.sh runs");
        let mut bed = Self { keeper, variables: BTreeMap::new() };
        let mut lines = BufReader::new(bed.keeper.stdout.take().expect("it is piped")).lines();
        loop {
            let line = lines.next().expect("it says that the bed is up").expect("it says so");
            if line == READY {
                return bed;
            }
            if let Some((name, value)) = line.split_once('=') {
                bed.variables.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// One of the variables that the bed exports; `deploy/testbed.sh` lists them.
    ///
    /// # Panics
    ///
    /// If it does not export it.
    #[track_caller]
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("the bed does not say {name}"))
    }

    /// Where a server of the bed is.
    pub fn url(&self, server: Server) -> &str {
        self.variable(server.variable())
    }

    /// The folder of logs and data, which goes with the bed.
    pub fn folder(&self) -> &Path {
        Path::new(self.variable(STATE))
    }

    /// Ends a server and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub async fn end(&self, server: Server, ending: Ending) {
        let order = match ending {
            Ending::Kill => "kill",
            Ending::Stop => "stop",
        };
        self.order(order, server).await;
    }

    /// Starts a server on what it has kept and waits until it answers; leaves one alone that runs.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub async fn start(&self, server: Server) {
        self.order("start", server).await;
    }

    async fn order(&self, order: &str, server: Server) {
        let mut command = tokio::process::Command::new(script());
        command.args([order, &server.to_string()]).env(STATE, self.folder()).stdin(Stdio::null());
        let done = timeout(ORDER_LIMIT, command.status()).await;
        let done = done.unwrap_or_else(|_| panic!("{order} {server} takes too long"));
        let done = done.expect("deploy/testbed.sh runs");
        assert!(done.success(), "deploy/testbed.sh {order} {server}: {done}");
    }

    /// Waits until RabbitMQ can be killed without harm to quorum queues that were just declared.
    ///
    /// RabbitMQ 3.10 answers a declaration before the name of the queue's replica is on the disk. A
    /// broker that is killed in that half second knows the queue and not its replica when it is back,
    /// and does not answer calls for the queue.
    ///
    /// # Panics
    ///
    /// If the names are not there in half a minute.
    pub async fn quorum_queues_are_kept(&self, queues: &[String]) {
        quorum_queues::are_kept(&self.folder().join("amqp/data"), queues).await;
    }

    /// Ends the bed and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it does not end in time or in good order.
    pub async fn remove(mut self) {
        drop(self.keeper.stdin.take());
        let ending = spawn_blocking(move || self.keeper.wait());
        let ended = timeout(ORDER_LIMIT, ending).await.expect("the bed ends in time");
        let status = ended.expect("waiting does not fail").expect("waiting does not fail");
        assert!(status.success(), "deploy/testbed.sh: {status}");
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testbed.sh")
}
