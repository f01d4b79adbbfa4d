//! Large bodies in both directions, through a gateway that is a process of its own, so that its memory
//! can be seen.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;
use tourin_chassis::http_client;
use tourin_testbed::{eventually, free_address};

use crate::harness::{Http2, Mesh, Site, ask};

/// Of each body.
const BYTES: usize = 128 << 20;
/// Besides what the gateway had before. A body that is kept would take four times as much.
const MAX_GROWTH_KB: u64 = 32 << 10;
const PART: &[u8] = &[b'x'; 64 << 10];
/// For all of it, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(300);

const ROUTES: &str = r#"
[[route]]
path = "/bulk"
service = "recommendation"
methods = { GET = "public", POST = "public" }
body_limit_bytes = 1_000_000_000
total_timeout_ms = 300_000

[[route]]
path = "/api/users"
service = "core"
methods = { GET = "public" }
"#;

/// An instance that sends and takes large bodies, and keeps none.
async fn bulk_instance(tls: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let accepting = tls.accept(tcp);
            tokio::spawn(async move { serve(BufReader::new(accepting.await?)).await });
        }
    });
    address
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + AsyncBufReadExt + Unpin,
) -> std::io::Result<()> {
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        // Health checks get a short answer.
        let sends = line.starts_with("GET /bulk ");
        while !line.trim().is_empty() {
            line.clear();
            stream.read_line(&mut line).await?;
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let took = tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
        let body = if sends { String::new() } else { took.to_string() };
        let length = if sends { BYTES } else { body.len() };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).await?;
        if sends {
            for _ in 0..BYTES / PART.len() {
                stream.write_all(PART).await?;
            }
        }
        stream.flush().await?;
    }
}

/// The gateway's program with this test's mesh.
fn program(mesh: &Mesh, folder: &TempDir, listen: SocketAddr, site: Option<&Site>) -> Child {
    let routes = folder.path().join("routes.toml");
    std::fs::write(&routes, ROUTES).unwrap();
    let token = mesh.authority.join_token("gateway", Some(1), LIMIT).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command
        .env_clear()
        .env("TOURIN_JOIN_TOKEN", token)
        .env("TOURIN_LOG", "warn")
        .args(["--registry-url", &mesh.registry_url, "--listen", &listen.to_string()])
        .arg("--routes")
        .arg(routes)
        .kill_on_drop(true);
    if let Some(site) = site {
        let tls = site.settings();
        command.arg("--tls-certificate").arg(&tls.certificates[0]);
        command.arg("--tls-key").arg(&tls.keys[0]);
    }
    command.spawn().unwrap()
}

/// The most memory that a process has held so far, in KiB.
fn peak_kb(process: &Child) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn parts() -> impl Iterator<Item = Bytes> {
    (0..BYTES / PART.len()).map(|_| Bytes::from_static(PART))
}

#[tokio::test]
async fn large_bodies_pass_in_flat_memory() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let instance = bulk_instance(mesh.tls("recommendation")).await;
    mesh.register("recommendation", "raw", instance).await;
    let (folder, listen) = (TempDir::new().unwrap(), free_address());
    let gateway = program(&mesh, &folder, listen, None);
    let http = http_client::client(LIMIT).unwrap();
    let url = |path: &str| format!("http://{listen}{path}");
    eventually("the gateway is ready", || async {
        http.get(url("/readyz")).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    assert_eq!(http.get(url("/api/users")).send().await.unwrap().status(), 200);
    let before = peak_kb(&gateway);

    let body = reqwest::Body::wrap_stream(stream::iter(parts().map(Ok::<_, std::io::Error>)));
    let sending = http.post(url("/bulk")).header("content-length", BYTES).body(body);
    let answer = sending.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), BYTES.to_string());

    let mut answer = http.get(url("/bulk")).send().await.unwrap();
    let mut received = 0;
    while let Some(part) = answer.chunk().await.unwrap() {
        received += part.len();
    }
    assert_eq!(received, BYTES);
    let grown = peak_kb(&gateway) - before;
    assert!(grown < MAX_GROWTH_KB, "{grown} KiB more than {before} KiB");
}

#[tokio::test]
async fn large_bodies_pass_over_http2_in_flat_memory() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let instance = bulk_instance(mesh.tls("recommendation")).await;
    mesh.register("recommendation", "raw", instance).await;
    let (folder, listen) = (TempDir::new().unwrap(), free_address());
    let site = Site::new(&["tourin.example"]);
    let gateway = program(&mesh, &folder, listen, Some(&site));
    let http = http_client::mesh_client(site.client_config(&[]), LIMIT).unwrap();
    eventually("the gateway is ready", || async {
        let ready = http.get(format!("https://{listen}/readyz")).send().await;
        ready.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let client = Http2::open(&site, listen).await;
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200);
    let before = peak_kb(&gateway);

    let length = BYTES.to_string();
    let mut ready = client.requests.clone().ready().await.unwrap();
    let request = ask("POST", "/bulk", &[("content-length", &length)]);
    let (response, mut body) = ready.send_request(request, false).unwrap();
    for mut part in parts() {
        while !part.is_empty() {
            body.reserve_capacity(part.len());
            let capacity =
                std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
            body.send_data(part.split_to(capacity.min(part.len())), false).unwrap();
        }
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);

    let mut ready = client.requests.clone().ready().await.unwrap();
    let (response, _) = ready.send_request(ask("GET", "/bulk", &[]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut received = 0;
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        received += part.len();
        body.flow_control().release_capacity(part.len()).unwrap();
    }
    assert_eq!(received, BYTES);
    let grown = peak_kb(&gateway) - before;
    assert!(grown < MAX_GROWTH_KB, "{grown} KiB more than {before} KiB");
}
