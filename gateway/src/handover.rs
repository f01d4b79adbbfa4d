//! Hands the listening sockets of a running gateway to the next one, such as a new version's.
//!
//! Both have the same `--handover-socket`. The new gateway asks there for the sockets, gets ready, and
//! begins to accept from them; then it says so, and the old one accepts no more and drains. Both have
//! the same queue of connections in the kernel, so none is lost. Should the new one fail before that, the
//! old one goes on as if nothing had been.
//!
//! The old gateway closes no idle connection for a while, because a request may be on its way: each of
//! them closes after its next response, and the client's next connection is the new gateway's.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, value_parser};
use http::StatusCode;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tourin_chassis::shutdown::{Shutdown, Tasks};

/// Most sockets that are handed over.
const MAX_LISTENERS: usize = 8;
/// Sent with the sockets.
const LISTENERS: u8 = b'L';
/// The new gateway accepts connections.
const SERVING: u8 = b'S';
/// The old gateway accepts no more and offers nothing more.
const GOING: u8 = b'G';
/// Time for an answer of the other gateway.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const READY_EVERY: Duration = Duration::from_millis(20);

/// How a gateway is replaced without a stop.
#[derive(Debug, Clone, Args)]
pub struct HandoverSettings {
    /// Unix socket by which a gateway hands its listening sockets to the next one that is started with the
    /// same file; that one begins when it is ready, and this one drains and ends [default: none, so that a
    /// second gateway cannot have the addresses]
    #[arg(long, env = "TOURIN_GATEWAY_HANDOVER_SOCKET", value_name = "FILE")]
    pub handover_socket: Option<PathBuf>,
    /// Milliseconds for which a gateway that was replaced waits for requests on connections that it has
    #[arg(long, env = "TOURIN_GATEWAY_HANDOVER_DRAIN_MS", value_name = "MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(0..=3_600_000))]
    pub handover_drain_ms: u64,
    /// Milliseconds that a gateway may take to get ready before it replaces another one; it ends then, and
    /// the other one goes on
    #[arg(long, env = "TOURIN_GATEWAY_HANDOVER_READY_MS", value_name = "MS", default_value_t = 30_000, value_parser = value_parser!(u64).range(100..=3_600_000))]
    pub handover_ready_ms: u64,
}

/// A gateway's listening sockets: those of the one before it, or new ones, and the offer to the next one.
pub struct Sockets {
    settings: HandoverSettings,
    predecessor: Option<Predecessor>,
    offered: Vec<TcpListener>,
    replaced: Shutdown,
}

impl Sockets {
    /// Asks for the sockets of a gateway that runs, where the settings say so.
    ///
    /// # Errors
    /// Those of [`Predecessor::ask`].
    pub async fn new(settings: HandoverSettings) -> anyhow::Result<Self> {
        let predecessor = match &settings.handover_socket {
            Some(path) => Predecessor::ask(path).await?,
            None => None,
        };
        Ok(Self { settings, predecessor, offered: Vec::new(), replaced: Shutdown::new() })
    }

    /// Begins when a successor has replaced this gateway.
    pub fn replaced(&self) -> Shutdown {
        self.replaced.clone()
    }

    /// The predecessor's socket with this address, or else a new one. It will be offered to a successor.
    ///
    /// # Errors
    /// When the address is taken or not available.
    pub async fn listen(
        &mut self,
        address: SocketAddr,
    ) -> anyhow::Result<(TcpListener, SocketAddr)> {
        let taken = self.predecessor.as_mut().and_then(|predecessor| predecessor.take(address));
        let listener = match taken {
            Some(listener) => listener,
            None => {
                let listener = tourin_chassis::http::bind(address).await?;
                listener.into_std().context("cannot hand the listener over")?
            }
        };
        if self.settings.handover_socket.is_some() {
            self.offered.push(listener.try_clone().context("cannot offer a listening socket")?);
        }
        let address = listener.local_addr().context("cannot tell the bound address")?;
        Ok((listener, address))
    }

    /// Waits until this gateway's readiness is good, if it is to replace another one: that one serves meanwhile.
    ///
    /// # Errors
    /// When that takes longer than [`HandoverSettings::handover_ready_ms`], with what is missing, and when
    /// `stop` begins before.
    pub async fn ready(
        &self,
        readiness: impl Fn() -> (StatusCode, Value),
        stop: &Shutdown,
    ) -> anyhow::Result<()> {
        if self.predecessor.is_none() {
            return Ok(());
        }
        let is_ready = async {
            while !readiness().0.is_success() {
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        let limit = Duration::from_millis(self.settings.handover_ready_ms);
        tokio::select! {
            () = is_ready => Ok(()),
            () = tokio::time::sleep(limit) => {
                let (_, report) = readiness();
                bail!(
                    "not ready within --handover-ready-ms ({} ms), so the gateway that runs goes on: {report}",
                    self.settings.handover_ready_ms
                );
            }
            () = stop.begun() => {
                bail!("stopped before it was ready, so the gateway that runs goes on");
            }
        }
    }

    /// This gateway accepts connections: replaces its predecessor, if it has one, and offers its sockets to the
    /// next one from now on, if it is to be replaced.
    ///
    /// # Errors
    /// When the Unix socket cannot be made.
    pub async fn serving(self, tasks: &Tasks, stopping: &Shutdown) -> anyhow::Result<()> {
        // Before the other one goes: a gateway that cannot make the Unix socket must not leave nobody.
        let offer = self.settings.handover_socket.as_deref();
        let offer = offer.map(|path| Offer::new(path, self.offered)).transpose()?;
        if let Some(predecessor) = self.predecessor {
            // Whatever the other one does from here on, this one serves, so it goes on.
            match predecessor.replace().await {
                Ok(()) => tracing::info!("replaced the gateway that was running"),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "serving, but the gateway before it has not said that it is going: check that it has ended"
                ),
            }
        }
        if let Some(offer) = offer {
            let (stopping, stop) = (stopping.clone(), tasks.shutdown().token());
            tasks.spawn("hand-over", offer.run(self.replaced, stopping, stop));
        }
        Ok(())
    }
}

/// Waits until a stop begins, or a successor has replaced this gateway.
pub async fn any_begun(stop: &Shutdown, replaced: &Shutdown) {
    tokio::select! {
        () = stop.begun() => {}
        () = replaced.begun() => {}
    }
}

/// The gateway that runs, as its successor sees it.
pub struct Predecessor {
    stream: UnixStream,
    listeners: Vec<(SocketAddr, TcpListener)>,
}

impl Predecessor {
    /// Asks the gateway at `path` for its sockets; `None` when no gateway runs there.
    ///
    /// # Errors
    /// When the gateway there is another user's, or does not answer: it is handing over already.
    pub async fn ask(path: &Path) -> anyhow::Result<Option<Self>> {
        let shown = || format!("--handover-socket {}", path.display());
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                // The file may be left over from a gateway that was killed.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
                _ => return Err(error).with_context(shown),
            },
        };
        ensure!(is_own(&stream), "{}: the gateway there is another user's", shown());
        let received = tokio::time::timeout(ANSWER_TIMEOUT, receive_listeners(&stream)).await;
        let listeners = received
            .unwrap_or_else(|_| Err(io::Error::other("it may be handing over to another one")))
            .with_context(|| format!("{}: the gateway there does not hand over", shown()))?;
        let with_address = |listener: TcpListener| Some((listener.local_addr().ok()?, listener));
        let listeners = listeners.into_iter().filter_map(with_address).collect();
        Ok(Some(Self { stream, listeners }))
    }

    /// Its socket with this address, if it has one.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let found = self.listeners.iter().position(|(listening, _)| *listening == address)?;
        Some(self.listeners.swap_remove(found).1)
    }

    /// Tells it that its successor accepts connections, and waits until it offers its sockets no more.
    ///
    /// # Errors
    /// When it does not answer, or has ended by itself.
    pub async fn replace(mut self) -> anyhow::Result<()> {
        let replaced = async {
            self.stream.write_all(&[SERVING]).await?;
            self.stream.read_u8().await
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, replaced).await;
        let answer = answer.context("the gateway that was running does not answer")?;
        ensure!(answer? == GOING, "the gateway that was running gives another answer");
        Ok(())
    }
}

/// The offer to a successor.
pub struct Offer {
    socket: UnixListener,
    listeners: Vec<TcpListener>,
}

impl Offer {
    /// Offers `listeners` at `path`, in the place of whatever was offered there. The file stays when the offer
    /// ends, as it does when a gateway is killed: the next one takes its place.
    ///
    /// # Errors
    /// When the Unix socket cannot be made.
    pub fn new(path: &Path, listeners: Vec<TcpListener>) -> anyhow::Result<Self> {
        // Made beside it and renamed, so that the path is never without a socket.
        let mut made = path.as_os_str().to_owned();
        made.push(format!(".{}", std::process::id()));
        let bind = || {
            if let Err(error) = std::fs::remove_file(&made)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let socket = UnixListener::bind(&made)?;
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&made, private)?;
            std::fs::rename(&made, path)?;
            io::Result::Ok(socket)
        };
        let socket = bind().with_context(|| format!("--handover-socket {}", path.display()))?;
        Ok(Self { socket, listeners })
    }

    /// Waits for a successor that serves, and gives `replaced` then. A gateway that is `stopping` offers
    /// nothing more, so that nobody waits in its sockets' queues. Ends with `stop`.
    pub async fn run(self, replaced: Shutdown, stopping: Shutdown, stop: CancellationToken) {
        let Self { socket, listeners } = self;
        let successor = async {
            loop {
                match socket.accept().await {
                    Ok((stream, _)) if !is_own(&stream) => {
                        tracing::warn!("another user's process asked for the listening sockets");
                    }
                    Ok((stream, _)) => match hand_over(stream, &listeners).await {
                        Ok(stream) => return stream,
                        Err(error) => {
                            tracing::warn!(%error, "a successor gave up; this gateway goes on");
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a successor");
                        tokio::time::sleep(READY_EVERY).await;
                    }
                }
            }
        };
        let successor = tokio::select! {
            () = stopping.begun() => None,
            () = stop.cancelled() => None,
            stream = successor => Some(stream),
        };
        drop((socket, listeners));
        if let Some(mut stream) = successor {
            replaced.begin();
            if let Err(error) = stream.write_all(&[GOING]).await {
                tracing::warn!(%error, "the successor is gone");
            }
        }
        stop.cancelled().await;
    }
}

/// Sends the sockets, and waits until the successor serves.
async fn hand_over(mut stream: UnixStream, listeners: &[TcpListener]) -> io::Result<UnixStream> {
    send_listeners(&stream, listeners).await?;
    tracing::info!("a successor has the listening sockets and gets ready");
    match stream.read_u8().await? {
        SERVING => Ok(stream),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Whether the process at the other end is the same user's.
fn is_own(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own)
}

async fn send_listeners(stream: &UnixStream, listeners: &[TcpListener]) -> io::Result<()> {
    let send = || {
        let sockets: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_LISTENERS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("too many listening sockets"));
        }
        sendmsg(stream, &[IoSlice::new(&[LISTENERS])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    stream.async_io(Interest::WRITABLE, send).await
}

async fn receive_listeners(stream: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let receive = || {
        let mut kind = [0];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_LISTENERS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut kind)];
        let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut listeners = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                listeners.extend(sockets.map(TcpListener::from));
            }
        }
        if kind != [LISTENERS] {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(listeners)
    };
    stream.async_io(Interest::READABLE, receive).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_gets_the_sockets_and_one_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        assert!(Predecessor::ask(&path).await.unwrap().is_none(), "nobody is there");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        // What a killed gateway leaves is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(Predecessor::ask(&path).await.unwrap().is_none(), "it was killed");
        let offer = Offer::new(&path, vec![listener]).unwrap();
        let (replaced, stop) = (Shutdown::new(), CancellationToken::new());
        let running = tokio::spawn(offer.run(replaced.clone(), Shutdown::new(), stop.clone()));

        let failing = Predecessor::ask(&path).await.unwrap().expect("it runs");
        drop(failing);
        let mut predecessor = Predecessor::ask(&path).await.unwrap().expect("it goes on");
        assert!(!replaced.is_begun());
        assert!(predecessor.take("127.0.0.1:1".parse().unwrap()).is_none());
        let taken = predecessor.take(address).expect("the same socket");
        let taken = tokio::net::TcpListener::from_std(taken).unwrap();
        predecessor.replace().await.unwrap();
        assert!(replaced.is_begun());
        assert!(Predecessor::ask(&path).await.unwrap().is_none(), "it offers nothing more");
        let (connected, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), taken.accept());
        assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_successor_has_the_sockets_of_a_gateway_that_stops_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let offer = Offer::new(&path, vec![listener]).unwrap();
        let (replaced, stopping) = (Shutdown::new(), Shutdown::new());
        let stop = CancellationToken::new();
        let running = tokio::spawn(offer.run(replaced.clone(), stopping.clone(), stop.clone()));
        let mut predecessor = Predecessor::ask(&path).await.unwrap().expect("it runs");
        stopping.begin();
        stop.cancel();
        running.await.unwrap();

        // The client's connection waits in the socket's queue.
        let connected = tokio::net::TcpStream::connect(address).await.unwrap();
        let settings = HandoverSettings {
            handover_socket: Some(path.clone()),
            handover_drain_ms: 0,
            handover_ready_ms: 100,
        };
        let taken = predecessor.take(address).expect("its socket");
        let sockets = Sockets {
            settings,
            predecessor: Some(predecessor),
            offered: vec![taken.try_clone().unwrap()],
            replaced: Shutdown::new(),
        };
        let tasks = Tasks::new(Shutdown::new());
        sockets.serving(&tasks, &Shutdown::new()).await.expect("it serves all the same");
        assert!(!replaced.is_begun());
        assert_eq!(taken.accept().unwrap().1, connected.local_addr().unwrap());
        assert!(Predecessor::ask(&path).await.unwrap().is_some(), "it offers the socket now");
        tasks.shutdown().begin();
        tasks.finish(ANSWER_TIMEOUT).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_does_not_get_ready_does_not_replace_a_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let settings = HandoverSettings {
            handover_socket: Some(path.clone()),
            handover_drain_ms: 0,
            handover_ready_ms: 100,
        };
        let unready = || (StatusCode::SERVICE_UNAVAILABLE, Value::from("no keys"));
        let first = Sockets::new(settings.clone()).await.unwrap();
        first.ready(unready, &Shutdown::new()).await.expect("there is none to replace");

        let offer = Offer::new(&path, Vec::new()).unwrap();
        let (replaced, stop) = (Shutdown::new(), CancellationToken::new());
        let running = tokio::spawn(offer.run(replaced.clone(), Shutdown::new(), stop.clone()));
        let next = Sockets::new(settings.clone()).await.unwrap();
        let error = next.ready(unready, &Shutdown::new()).await.unwrap_err().to_string();
        assert!(error.contains("--handover-ready-ms") && error.contains("no keys"), "{error}");
        let stopped = Shutdown::new();
        stopped.begin();
        let slow = Sockets {
            settings: HandoverSettings { handover_ready_ms: 60_000, ..settings },
            ..next
        };
        let error = slow.ready(unready, &stopped).await.unwrap_err().to_string();
        assert!(error.contains("stopped"), "{error}");
        drop(slow);
        assert!(Predecessor::ask(&path).await.unwrap().is_some() && !replaced.is_begun());
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_could_not_be_replaced_itself_does_not_replace_a_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let offer = Offer::new(&path, Vec::new()).unwrap();
        let (replaced, stop) = (Shutdown::new(), CancellationToken::new());
        let running = tokio::spawn(offer.run(replaced.clone(), Shutdown::new(), stop.clone()));
        let next = Sockets::new(HandoverSettings {
            handover_socket: Some(path.clone()),
            handover_drain_ms: 0,
            handover_ready_ms: 100,
        });
        let next = next.await.unwrap();
        // A folder has the name under which it would make its own socket.
        let taken = format!("{}.{}", path.display(), std::process::id());
        std::fs::create_dir(taken).unwrap();
        let error = next.serving(&Tasks::new(Shutdown::new()), &Shutdown::new()).await.unwrap_err();
        assert!(error.to_string().contains("--handover-socket"), "{error:#}");
        assert!(Predecessor::ask(&path).await.unwrap().is_some() && !replaced.is_begun());
        stop.cancel();
        running.await.unwrap();
    }
}
