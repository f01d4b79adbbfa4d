//! A TCP proxy that delays what goes through it and cuts it off.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Clone, Copy, Default)]
struct State {
    /// What passes waits so long.
    delay: Duration,
    /// Connections begun under another number are cut.
    cuts: u64,
    /// New connections are cut at once.
    closed: bool,
}

/// Runs on a thread of its own, for it serves several tests, each with its own runtime.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    state: watch::Sender<State>,
}

impl Proxy {
    /// A proxy in front of `target`.
    pub fn start(target: SocketAddr) -> Self {
        let (state, watched) = watch::channel(State::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    accept(TcpListener::from_std(listener).unwrap(), target, watched).await;
                });
            })
            .unwrap();
        Self { address, state }
    }

    /// From now on each piece waits so long before it goes on, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Cuts every connection; new ones are welcome.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Cuts every connection, and new ones until [`Proxy::open`].
    pub fn close(&self) {
        self.state.send_modify(|state| {
            state.cuts += 1;
            state.closed = true;
        });
    }

    pub fn open(&self) {
        self.state.send_modify(|state| state.closed = false);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let now = *state.borrow();
        if !now.closed {
            connections.spawn(connect(client, target, state.clone(), now.cuts));
        }
    }
}

async fn connect(
    client: TcpStream,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
    cuts: u64,
) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, state.clone()) => {}
        () = pump(from_server, to_client, state.clone()) => {}
        _ = state.wait_for(|now| now.cuts != cuts) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: watch::Receiver<State>) {
    let mut piece = vec![0; 16 * 1_024];
    loop {
        let Ok(length @ 1..) = from.read(&mut piece).await else {
            return;
        };
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
