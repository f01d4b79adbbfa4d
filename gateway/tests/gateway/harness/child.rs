//! An instance in a process of its own, which can be killed and frozen. The process is this test program
//! again, which then runs one ignored test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tourin_testbed::eventually;

use super::Mesh;

const TEST: &str = "failing_instances::instance_process";
const ID: &str = "TOURIN_TEST_CHILD_ID";
const KEY: &str = "TOURIN_TEST_CHILD_KEY";
const CHAIN: &str = "TOURIN_TEST_CHILD_CHAIN";
const ADDRESS_FILE: &str = "TOURIN_TEST_CHILD_ADDRESS_FILE";

pub struct ChildInstance {
    process: Child,
    _folder: TempDir,
}

impl ChildInstance {
    /// Starts and registers it.
    pub async fn start(mesh: &Mesh, service: &str, id: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("address");
        let workload = mesh.authority.workload(service, id).unwrap();
        let chain = workload.chain();
        let chain: Vec<_> = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--ignored"])
            .env(ID, id)
            .env(KEY, STANDARD.encode(workload.key()))
            .env(CHAIN, chain.join(","))
            .env(ADDRESS_FILE, &file)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the process listens", || async { file.exists() }).await;
        let address = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        mesh.register(service, id, address).await;
        Self { process, _folder: folder }
    }

    /// `SIGKILL`.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// `SIGSTOP`.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
}

/// The child's part: serves until it is killed. Returns at once in a process that no test started.
pub fn serve_as_child<F: Future<Output = ()> + Send + 'static>(
    respond: impl Fn(TlsStream<TcpStream>, Arc<str>) -> F,
) {
    let Ok(id) = std::env::var(ID) else { return };
    let der = |text: &str| STANDARD.decode(text).unwrap();
    let key = PrivateKeyDer::try_from(der(&std::env::var(KEY).unwrap())).unwrap();
    let chain = std::env::var(CHAIN).unwrap();
    let chain = chain.split(',').map(|certificate| der(certificate).into()).collect();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let tls = TlsAcceptor::from(Arc::new(tls));
    let id: Arc<str> = id.into();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        announce(listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = tls.accept(stream).await {
                tokio::spawn(respond(stream, Arc::clone(&id)));
            }
        }
    });
}

/// Written whole: the parent waits for the file.
fn announce(address: SocketAddr) {
    let file = PathBuf::from(std::env::var_os(ADDRESS_FILE).unwrap());
    let unfinished = file.with_extension("new");
    std::fs::write(&unfinished, address.to_string()).unwrap();
    std::fs::rename(unfinished, file).unwrap();
}
