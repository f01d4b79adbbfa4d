//! A TCP proxy with which a test cuts, refuses, delays and drops.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::{authority, with_authority};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// Size of a read (bytes).
const PIECE: usize = 64 * 1_024;

/// When a connection is cut, relative to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before the server gets the request.
    BeforeRequest,
    /// After the server has responded; the response is lost.
    AfterRequest,
}

enum Order {
    Open,
    Close,
    Cut,
}

/// The proxy's current behaviour.
#[derive(Default)]
struct Behaviour {
    target: String,
    delay: Duration,
    /// Whether the server's bytes are dropped.
    drops_responses: bool,
    /// Connections on which bytes were dropped since then.
    affected: usize,
    /// Connections opened under another number transfer nothing any more.
    stalls: u64,
    /// The request at which a connection is to be cut.
    cut_at: Option<CutAt>,
    /// How many cuts were requested.
    cuts: u64,
}

/// The request at which a connection is cut.
#[derive(Clone, Copy)]
struct CutAt {
    /// The number of this cut.
    number: u64,
    /// What the connection must send before the request.
    after: &'static [u8],
    /// What the request contains.
    request: &'static [u8],
    cut: Cut,
}

type Shared = Arc<Mutex<Behaviour>>;

impl Behaviour {
    /// Whether the server's bytes on a connection are dropped now; `was_affected` keeps whether they
    /// were before.
    fn loses(&mut self, was_affected: &mut bool) -> bool {
        if self.drops_responses && !*was_affected {
            self.affected += 1;
        }
        *was_affected = self.drops_responses;
        self.drops_responses
    }
}

/// A proxy between a client and a server. It runs on its own thread until it is dropped, so several
/// tests, each with its own runtime, may share it.
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    behaviour: Shared,
    orders: mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>,
}

impl Proxy {
    /// An open proxy for `target`, which is `HOST:PORT`.
    pub async fn open_to(target: impl ToString) -> Self {
        let proxy = Self::closed_to(target);
        proxy.open().await;
        proxy
    }

    /// A closed proxy for `target`: it has an address, and refuses connections.
    ///
    /// # Panics
    ///
    /// If no port or thread is available.
    pub fn closed_to(target: impl ToString) -> Self {
        let closed = bind(([127, 0, 0, 1], 0).into());
        let address = closed.local_addr().expect("it is bound");
        let behaviour = Behaviour { target: target.to_string(), ..Behaviour::default() };
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (orders, orders_to_come) = mpsc::unbounded_channel();
        let serving = serve(Listener::Closed(closed), address, behaviour.clone(), orders_to_come);
        std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(serving);
            })
            .expect("a thread");
        Self { address, behaviour, orders }
    }

    /// An open proxy for the server of a URL.
    pub async fn open_to_url(url: &str) -> Self {
        Self::open_to(authority(url)).await
    }

    /// A closed proxy for the server of a URL.
    pub fn closed_to_url(url: &str) -> Self {
        Self::closed_to(authority(url))
    }

    /// The server's URL, through this proxy.
    pub fn url(&self, url: &str) -> String {
        with_authority(url, &self.address.to_string())
    }

    /// Accepts new connections.
    pub async fn open(&self) {
        self.order(Order::Open).await;
    }

    /// Cuts every connection, and refuses new ones until [`Proxy::open`].
    pub async fn close(&self) {
        self.order(Order::Close).await;
    }

    /// Cuts all connections; bytes in flight are lost. New connections are accepted.
    pub async fn cut(&self) {
        self.order(Order::Cut).await;
    }

    /// Delays all bytes from now on, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.behaviour().delay = delay;
    }

    /// Drops the server's bytes until the next cut.
    pub fn drop_responses(&self) {
        let mut behaviour = self.behaviour();
        behaviour.drops_responses = true;
        behaviour.affected = 0;
    }

    /// The number of connections on which bytes were dropped since the last [`Proxy::drop_responses`].
    pub fn affected_connections(&self) -> usize {
        self.behaviour().affected
    }

    /// Open connections stay open but transfer nothing any more; new ones work.
    pub fn stall(&self) {
        self.behaviour().stalls += 1;
    }

    /// Connects new connections to another server.
    pub fn redirect_to(&self, target: impl ToString) {
        self.behaviour().target = target.to_string();
    }

    /// Cuts, once, the first connection that sends `request` after it has sent `after`. Other
    /// connections with the same request are not cut.
    pub fn cut_at(&self, after: &'static [u8], request: &'static [u8], cut: Cut) {
        let mut behaviour = self.behaviour();
        behaviour.cuts += 1;
        behaviour.cut_at = Some(CutAt { number: behaviour.cuts, after, request, cut });
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.behaviour)
    }

    /// Returns when the change has taken effect.
    async fn order(&self, order: Order) {
        let (done, is_done) = oneshot::channel();
        assert!(self.orders.send((order, done)).is_ok(), "the proxy's thread runs");
        is_done.await.expect("the proxy's thread runs");
    }
}

fn lock(behaviour: &Shared) -> MutexGuard<'_, Behaviour> {
    behaviour.lock().expect("no panic under the lock")
}

/// A bound port refuses connections until a socket listens on it.
enum Listener {
    Closed(TcpSocket),
    Open(TcpListener),
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Otherwise the cut connections would keep the port.
    socket.set_reuseaddr(true).expect("a socket's option");
    socket.bind(address).expect("a port");
    socket
}

impl Listener {
    async fn next(&self) -> TcpStream {
        match self {
            Self::Closed(_) => std::future::pending().await,
            Self::Open(listener) => listener.accept().await.expect("a connection").0,
        }
    }

    fn open(self) -> Self {
        match self {
            Self::Closed(socket) => Self::Open(socket.listen(BACKLOG).expect("a listener")),
            open @ Self::Open(_) => open,
        }
    }

    fn close(self, address: SocketAddr) -> Self {
        // A listening socket cannot stop listening; a new socket replaces it.
        drop(self);
        Self::Closed(bind(address))
    }
}

async fn serve(
    mut listener: Listener,
    address: SocketAddr,
    behaviour: Shared,
    mut orders: mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((order, done)) = order else { return };
                match order {
                    Order::Open => listener = listener.open(),
                    Order::Close => {
                        listener = listener.close(address);
                        connections.shutdown().await;
                    }
                    Order::Cut => connections.shutdown().await,
                }
                if !matches!(order, Order::Open) {
                    lock(&behaviour).drops_responses = false;
                }
                // The caller may be gone.
                let _ = done.send(());
            }
            client = listener.next() => {
                connections.spawn(carry(client, behaviour.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its beginning to its end.
struct Connection {
    behaviour: Shared,
    stalls: u64,
    answer_is_lost: AtomicBool,
}

async fn carry(client: TcpStream, behaviour: Shared) {
    let (target, stalls) = {
        let behaviour = lock(&behaviour);
        (behaviour.target.clone(), behaviour.stalls)
    };
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let connection = Connection { behaviour, stalls, answer_is_lost: AtomicBool::new(false) };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Both ends are dropped when either ends.
    tokio::select! {
        () = connection.requests(from_client, to_server) => {}
        () = connection.answers(from_server, to_client) => {}
    }
}

impl Connection {
    async fn requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE];
        let mut came_before = 0;
        while let Some(request) = self.next(&mut from, &mut piece).await {
            let cut = self.cut_of(request, &mut came_before);
            if cut == Some(Cut::AfterRequest) {
                self.answer_is_lost.store(true, Ordering::SeqCst);
            }
            if cut == Some(Cut::BeforeRequest) || to.write_all(request).await.is_err() {
                return;
            }
        }
    }

    async fn answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE];
        let mut was_affected = false;
        while let Some(answer) = self.next(&mut from, &mut piece).await {
            // It answers once the change has taken effect.
            if self.answer_is_lost.load(Ordering::SeqCst) {
                return;
            }
            if lock(&self.behaviour).loses(&mut was_affected) {
                continue;
            }
            if to.write_all(answer).await.is_err() {
                return;
            }
        }
    }

    /// The next bytes, when they may pass; none at the end.
    async fn next<'a>(&self, from: &mut OwnedReadHalf, piece: &'a mut [u8]) -> Option<&'a [u8]> {
        let read = from.read(piece).await;
        let (delay, is_silent) = {
            let behaviour = lock(&self.behaviour);
            (behaviour.delay, behaviour.stalls != self.stalls)
        };
        if is_silent {
            // Even the end is dropped.
            std::future::pending::<()>().await;
        }
        let length = read.ok().filter(|length| *length > 0)?;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Some(&piece[..length])
    }

    /// `came_before` keeps the cut for which the connection has already sent the preceding bytes.
    fn cut_of(&self, sent: &[u8], came_before: &mut u64) -> Option<Cut> {
        let find = |wanted: &[u8], sent: &[u8]| {
            sent.windows(wanted.len()).position(|window| window == wanted)
        };
        let mut behaviour = lock(&self.behaviour);
        let CutAt { number, after, request, cut } = behaviour.cut_at?;
        let mut rest = sent;
        if *came_before != number {
            rest = &sent[find(after, sent)? + after.len()..];
            *came_before = number;
        }
        find(request, rest).map(|_| {
            behaviour.cut_at = None;
            cut
        })
    }
}
