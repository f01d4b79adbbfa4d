//! Programs as processes, with signals.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tourin_testbed::eventually_within;

use crate::world::TIMEOUT;

/// A program of the workspace. Cargo gives a test the paths of its own package's programs only; the services'
/// programs are in the same folder.
pub fn program(name: &str) -> PathBuf {
    let tourin = Path::new(env!("CARGO_BIN_EXE_tourin"));
    let path = tourin.with_file_name(name);
    assert!(path.exists(), "{name} is not built: run `cargo build --workspace --bins` first");
    path
}

/// A command without the caller's `TOURIN_*` variables.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TOURIN_") {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A process that is killed when the scenario is over.
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Starts it and collects both its outputs, line by line.
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (sender, lines) = mpsc::channel();
        collect(child.stdout.take().expect("piped"), sender.clone());
        collect(child.stderr.take().expect("piped"), sender);
        Self { child, lines }
    }

    /// Waits for a line that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line with '{text}' in: {seen:#?}"),
            }
        }
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the end, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        eventually_within(limit, "the process ends", async || {
            self.child.try_wait().expect("a child to wait for").ok_or("it runs")
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn collect(output: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
}
