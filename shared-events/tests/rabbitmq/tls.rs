//! TLS to the broker, through a proxy that terminates it: the test bed's broker has no TLS.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lapin::uri::AMQPUri;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{
    PublishError, Publisher as _, Settlement, SubscribeError, Subscriber as _,
};

use crate::bed::{Bed, broker_url, soon};

/// Python is available, because the test bed needs it.
const PROXY: &str = r#"
import asyncio, ssl, sys
certificate, key, host, port = sys.argv[1:]
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def carry(reader, writer):
    there, back = await asyncio.open_connection(host, int(port))
    await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

/// A certificate authority, and its certificate for 127.0.0.1.
async fn certificates(folder: &Path) {
    let script = r#"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test authority" \
            -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=broker" -keyout key.pem -out csr.pem
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\n' > names
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem
    "#;
    let making = Command::new("sh").args(["-e", "-c", script]).current_dir(folder).output();
    let made = making.await.expect("a shell");
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
}

async fn proxy(folder: &Path) -> (Child, u16) {
    let uri: AMQPUri = broker_url().parse().expect("an AMQP URL");
    let (host, port) = (uri.authority.host, uri.authority.port.to_string());
    let mut command = Command::new("python3");
    command.args(["-c", PROXY, "cert.pem", "key.pem", &host, &port]).current_dir(folder);
    let mut proxy = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("python3");
    let mut lines = BufReader::new(proxy.stdout.take().expect("an output")).lines();
    let port = soon(lines.next_line()).await.expect("a line").expect("a port");
    (proxy, port.parse().expect("a port"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_trusted_by_a_private_authority_only_when_that_is_named() {
    let folder = TempDir::new().unwrap();
    certificates(folder.path()).await;
    let (_proxy, port) = proxy(folder.path()).await;
    let bed = Bed::new();
    let uri: AMQPUri = broker_url().parse().unwrap();
    let user = &uri.authority.userinfo;
    let vhost = if uri.vhost == "/" { "%2f" } else { &uri.vhost };
    let url = format!("amqps://{}:{}@127.0.0.1:{port}/{vhost}", user.username, user.password);
    let limit = Duration::from_secs(1);
    let settings = RabbitSettings {
        url: url.parse().unwrap(),
        publish_wait: limit,
        subscribe_timeout: limit,
        ..bed.settings()
    };

    let stranger = RabbitBus::start(settings.clone());
    let refused = soon(stranger.subscribe(users("q"))).await;
    assert!(matches!(refused, Err(SubscribeError::Unavailable(_))), "{refused:?}");
    let results = soon(stranger.publish(vec![view("a", 1)])).await;
    assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");

    let authority = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    let settings = RabbitSettings {
        ca_certificates_pem: Some(authority),
        subscribe_timeout: Duration::from_secs(10),
        publish_wait: Duration::from_secs(10),
        ..settings
    };
    let bus = RabbitBus::start(settings);
    let mut deliveries = soon(bus.subscribe(users("q"))).await.unwrap();
    assert_eq!(soon(bus.publish(vec![view("a", 1)])).await, [Ok(())]);
    let delivery = soon(deliveries.next()).await.unwrap();
    assert_eq!(key_and_number(&delivery).0, "a");
    delivery.settle(Settlement::Ack).await.unwrap();
    soon(stranger.close(Duration::from_secs(1))).await;
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}
