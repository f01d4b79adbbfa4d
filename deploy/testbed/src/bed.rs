//! A test's own servers, which it can stop, kill and restart.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::{Server, User, quorum_queues};

/// The command that keeps the bed running: it prints the servers' addresses, and ends with its
/// standard input, so at the latest with this process.
const KEEPER: &str = "env | grep ^TOURIN_; echo 'the bed is up'; exec cat >&2";
const READY: &str = "the bed is up";
const STATE: &str = "TOURIN_TESTBED_STATE";
/// How long the bed may take to install missing servers and to start.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long it may take to start or stop one server, or to end.
const ORDER_LIMIT: Duration = Duration::from_secs(150);

/// How a server ends; its data stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGKILL: without a clean stop.
    Kill,
    /// SIGTERM: a clean stop.
    Term,
}

/// Private servers, started by `deploy/testbed.sh`. They end when this value is dropped or its
/// process ends; [`Bed::remove`] also waits until they have ended.
///
/// It is independent of the runtime that it was created in.
#[derive(Debug)]
pub struct Bed {
    // Its standard input is kept open.
    keeper: Child,
    variables: BTreeMap<String, String>,
}

impl Bed {
    /// Starts only these servers and waits, at most half a minute, until each of them answers.
    ///
    /// # Panics
    ///
    /// If they do not start; `deploy/testbed.sh` prints the reason to standard error.
    pub async fn with(servers: &[Server]) -> Self {
        let mut command = Command::new(script());
        command.args(["run", "--", "sh", "-c", KEEPER]);
        // Servers from the environment must not be stopped.
        command.env_remove("TOURIN_AMQP_API_URL").env_remove(STATE);
        command.env_remove("TOURIN_MYSQL_ADMIN_URL");
        for server in Server::ALL {
            for user in User::ALL {
                command.env_remove(user.variable(server));
            }
            if servers.contains(&server) {
                command.env_remove(server.variable());
            } else {
                // A server with an address is not started.
                command.env(server.variable(), "not-needed");
            }
        }
        let starting = spawn_blocking(move || Self::keep(command));
        let started = timeout(START_LIMIT, starting).await.expect("the bed starts in time");
        started.expect("the bed starts: see its output above")
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

    /// The URL of a server of the bed.
    pub fn url(&self, server: Server) -> &str {
        self.variable(server.variable())
    }

    /// The URL of a server of the bed for one of its users.
    pub fn url_of(&self, user: User, server: Server) -> &str {
        self.variable(&user.variable(server))
    }

    /// The folder of logs and data, which is deleted with the bed.
    pub fn folder(&self) -> &Path {
        Path::new(self.variable(STATE))
    }

    /// Ends a server and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub async fn stop(&self, server: Server, signal: StopSignal) {
        let order = match signal {
            StopSignal::Kill => "kill",
            StopSignal::Term => "stop",
        };
        self.order(order, server).await;
    }

    /// Starts a server on its existing data and waits until it answers. A running server is not
    /// changed.
    ///
    /// # Panics
    ///
    /// If it does not start.
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
    /// RabbitMQ 3.10 answers a declaration before the name of the queue's replica is on disk. A
    /// broker that is killed in that half second knows the queue but not its replica after a
    /// restart, and does not answer calls for the queue.
    ///
    /// # Panics
    ///
    /// If the names are not on disk within half a minute.
    pub async fn quorum_queues_are_kept(&self, queues: &[String]) {
        quorum_queues::are_kept(&self.folder().join("amqp/data"), queues).await;
    }

    /// Ends the bed and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If it does not end in time or fails.
    pub async fn remove(mut self) {
        drop(self.keeper.stdin.take());
        let end = spawn_blocking(move || self.keeper.wait());
        let ended = timeout(ORDER_LIMIT, end).await.expect("the bed ends in time");
        let status = ended.expect("waiting does not fail").expect("waiting does not fail");
        assert!(status.success(), "deploy/testbed.sh: {status}");
    }
}

/// Looked for above the package under test. Checkouts may share a target folder, and what is compiled into
/// this crate there may be the path of another one.
fn script() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| env::current_dir().expect("there is a current folder"));
    let mut scripts = package.ancestors().map(|folder| folder.join("deploy/testbed.sh"));
    scripts.find(|script| script.exists()).expect("deploy/testbed.sh is above the package")
}
