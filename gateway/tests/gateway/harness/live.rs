//! A service of streams: WebSockets that answer what they are told, and events that a test sends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Mesh;
use super::websocket::{ACCEPT, BINARY, CLOSE, TEXT, encode, read_frame, read_head};

const FLOOD_FRAME: usize = 16 << 10;

#[derive(Clone)]
pub struct Live {
    inner: Arc<Inner>,
}

struct Inner {
    open: AtomicUsize,
    flooded: AtomicU64,
    heads: Mutex<Vec<String>>,
    /// The status of each Close frame of a client.
    closes: Mutex<Vec<u16>>,
    rest: Notify,
    events: broadcast::Sender<String>,
}

impl Live {
    /// One instance of the service `live`.
    pub async fn start(mesh: &Mesh) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let live = Self {
            inner: Arc::new(Inner {
                open: AtomicUsize::new(0),
                flooded: AtomicU64::new(0),
                heads: Mutex::default(),
                closes: Mutex::default(),
                rest: Notify::new(),
                events: broadcast::channel(64).0,
            }),
        };
        let (tls, inner, stop) = (mesh.tls("live"), Arc::clone(&live.inner), mesh.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, tls, inner) => {}
                () = stop.begun() => {}
            }
        });
        mesh.register("live", "live-1", address).await;
        live
    }

    /// Streams that are open here.
    pub fn open(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }

    /// Bytes that were written for `flood`.
    pub fn flooded(&self) -> u64 {
        self.inner.flooded.load(Ordering::SeqCst)
    }

    /// The head of the last request.
    pub fn last_head(&self) -> String {
        self.inner.heads.lock().unwrap().last().unwrap().to_ascii_lowercase()
    }

    pub fn closes(&self) -> Vec<u16> {
        self.inner.closes.lock().unwrap().clone()
    }

    /// Sends the rest of the frames that `half` began.
    pub fn send_the_rest(&self) {
        self.inner.rest.notify_waiters();
    }

    pub fn send_event(&self, data: &str) {
        let _ = self.inner.events.send(data.to_owned());
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, inner: Arc<Inner>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, inner) = (tls.clone(), Arc::clone(&inner));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            serve(stream, &inner).await;
        });
    }
}

/// Counts an open stream until it is dropped.
struct Open<'a>(&'a Inner);

impl<'a> Open<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.open.fetch_add(1, Ordering::SeqCst);
        Self(inner)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, inner: &Inner) {
    let head = read_head(&mut stream).await;
    let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return };
    if !path.starts_with("/api/") {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    inner.heads.lock().unwrap().push(head);
    let _open = Open::new(inner);
    if path.ends_with("?silent") {
        let _gone = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
    } else if path.ends_with("?refuse") {
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\n{}").await;
    } else if path.contains("events") {
        let _ = events(&mut stream, inner, &path).await;
    } else {
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\nX-Tourin-Internal: secret\r\n\r\n"
        );
        if stream.write_all(head.as_bytes()).await.is_ok() {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = frames(&mut read, &mut write, inner).await;
            let _ = write.shutdown().await;
        }
    }
}

async fn frames(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    inner: &Inner,
) -> std::io::Result<()> {
    while let Some(frame) = read_frame(read).await {
        match (frame.opcode, frame.payload.as_slice()) {
            (CLOSE, payload) => {
                let status = payload.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
                inner.closes.lock().unwrap().push(status);
                write.write_all(&encode(CLOSE, payload, None)).await?;
                write.flush().await?;
                return Ok(());
            }
            (TEXT, b"flood") => loop {
                write.write_all(&encode(BINARY, &[b'x'; FLOOD_FRAME], None)).await?;
                inner.flooded.fetch_add(FLOOD_FRAME as u64, Ordering::SeqCst);
            },
            (TEXT, b"half") => {
                let whole = encode(TEXT, &[b'y'; 1_000], None);
                let rest = inner.rest.notified();
                write.write_all(&whole[..300]).await?;
                write.flush().await?;
                rest.await;
                write.write_all(&whole[300..]).await?;
                write.write_all(&encode(TEXT, b"one more", None)).await?;
                write.flush().await?;
            }
            (opcode, payload) => {
                write.write_all(&encode(opcode, payload, None)).await?;
                write.flush().await?;
            }
        }
    }
    Ok(())
}

async fn events(
    stream: &mut TlsStream<TcpStream>,
    inner: &Inner,
    path: &str,
) -> std::io::Result<()> {
    let mut events = inner.events.subscribe();
    let kind = if path.ends_with("?plain") { "text/plain" } else { "text/event-stream" };
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut probe = [0];
    loop {
        tokio::select! {
            event = events.recv() => {
                let Ok(data) = event else { return Ok(()) };
                let event = format!("data: {data}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await?;
                stream.flush().await?;
            }
            _ = tokio::io::AsyncReadExt::read(stream, &mut probe) => return Ok(()),
        }
    }
}
