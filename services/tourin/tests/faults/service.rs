//! A service as a process that can be killed and started again. It ends with the test's process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tourin_testbed::free_address;

use crate::process::{command, program};

/// Starts a program, prints its process id, and kills it when standard input ends: also when the test's
/// process is killed.
const KEEPER: &str = r#"log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & child=$!; echo "$child"; cat >&2; kill -KILL "$child" 2>/dev/null; wait "$child""#;

pub struct Service {
    /// Its name, such as `recommendation-2`.
    pub name: String,
    /// The address that it listens on.
    pub address: SocketAddr,
    program: &'static str,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    log: PathBuf,
    keeper: Option<(Child, u32)>,
}

impl Service {
    /// A service on a free port, not started.
    pub fn new(program: &'static str, name: &str, folder: PathBuf) -> Self {
        let address = free_address();
        let log = folder.join(format!("{name}.log"));
        Self {
            name: name.to_owned(),
            address,
            program,
            arguments: vec!["--listen".to_owned(), address.to_string()],
            variables: Vec::new(),
            log,
            keeper: None,
        }
    }

    pub fn argument(mut self, flag: &str, value: impl ToString) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_string()]);
        self
    }

    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// For clients of a gateway, and for probes of every service.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts it; it may take a while until it listens.
    pub fn start(&mut self) {
        self.end();
        // Without the variables of the environment, which name other servers.
        let clean = command(self.program);
        let mut keeper = Command::new("sh");
        for (name, value) in clean.get_envs() {
            if value.is_none() {
                keeper.env_remove(name);
            }
        }
        keeper.args(["-c", KEEPER, "keeper"]).arg(&self.log).arg(program(self.program));
        let mut child = keeper
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The shell reports there that the program was killed.
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).unwrap();
        let id = line.trim().parse().expect("a process id");
        self.keeper = Some((child, id));
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        assert!(
            self.is_running(),
            "{} is gone already; the end of its log:\n{}",
            self.name,
            self.last_words()
        );
        self.end();
    }

    fn end(&mut self) {
        if let Some((mut keeper, id)) = self.keeper.take() {
            let killed = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            killed.expect("kill runs");
            drop(keeper.stdin.take());
            let _ended = keeper.wait();
        }
    }

    /// Whether it runs. A zombie does not.
    pub fn is_running(&self) -> bool {
        let Some((_, id)) = &self.keeper else {
            return false;
        };
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// The most memory that it has held so far, in MiB (`VmHWM`).
    pub fn peak_mib(&self) -> u64 {
        let id = self.keeper.as_ref().map(|(_, id)| *id).expect("it runs");
        let status = File::open(format!("/proc/{id}/status")).expect("it runs");
        BufReader::new(status)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                let kib = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
                kib.parse::<u64>().ok()
            })
            .expect("VmHWM")
            / 1_024
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
