//! Between the service and the server: a way that can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tourin_shared_events::mysql::testing::TestDatabase;

/// Where the next commit is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never hears of it.
    BeforeCommit,
    /// The server did it; its answer is lost.
    AfterCommit,
}

type Next = Arc<Mutex<Option<Cut>>>;

/// A TCP proxy in front of the test bed's server.
pub struct Way {
    pub address: SocketAddr,
    to: String,
    open: Option<JoinHandle<()>>,
    next: Next,
}

impl Way {
    /// To the database: takes an address, and refuses connections.
    pub async fn closed() -> Self {
        Self::closed_to(TestDatabase::authority()).await
    }

    /// The same to another server, `HOST:PORT`.
    pub async fn closed_to(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), to, open: None, next: Next::default() }
    }

    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (next, to) = (self.next.clone(), self.to.clone());
        self.open = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (from, _) = listener.accept().await.unwrap();
                let to = TcpStream::connect(&to).await.unwrap();
                connections.spawn(carry(from, to, next.clone()));
            }
        }));
    }

    /// Cuts all connections and refuses new ones.
    pub async fn cut(&mut self) {
        let open = self.open.take().unwrap();
        open.abort();
        assert!(open.await.unwrap_err().is_cancelled());
    }

    /// Cuts the connection that commits next.
    pub fn cut_next(&self, cut: Cut) {
        *self.next.lock().unwrap() = Some(cut);
    }
}

async fn carry(mut from: TcpStream, mut to: TcpStream, next: Next) {
    let (mut request, mut answer) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            read = from.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                let request = &request[..length];
                let commits = request.windows(6).any(|window| window == b"COMMIT");
                let cut = if commits { next.lock().unwrap().take() } else { None };
                if cut == Some(Cut::BeforeCommit) || to.write_all(request).await.is_err() {
                    return;
                }
                if cut == Some(Cut::AfterCommit) {
                    // It answers when it has committed.
                    assert!(to.read(&mut answer).await.unwrap() > 0);
                    return;
                }
            }
            read = to.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if from.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
