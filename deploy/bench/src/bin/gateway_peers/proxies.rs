//! The proxies that are compared, each as a process with one worker.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tourin_bench::{free_address, thread_times, without_settings};
use tourin_chassis::http_client;
use tourin_chassis::peer::GATEWAY;

use crate::Programs;
use crate::surroundings::{PLAIN, SEALED, Surroundings, nginx_conf};
use crate::tokens::{AUDIENCE, ISSUER};

/// How long a proxy may take to answer its first request; much under callgrind.
const START: Duration = Duration::from_secs(120);
/// Tokens that are remembered by who remembers some.
const CACHED_TOKENS: usize = 20_000;

/// A process; killed when dropped.
pub struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Process {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        without_settings(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = child.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        Ok(Self { child })
    }

    pub fn nginx(conf: &Path) -> anyhow::Result<Self> {
        Self::start(Command::new("nginx").arg("-c").arg(conf).stderr(Stdio::null()))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processor time of all its threads.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        Ok(thread_times(self.id())?.into_iter().map(|(_, time)| time).sum())
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
        Ok(kib.parse::<u64>()? << 10)
    }
}

/// A kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    HaproxyJwt,
    EnvoyJwtCache,
    BarePingora,
    BestPingora,
    Everything,
    EverythingMtls,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Nginx,
        Self::HaproxyJwt,
        Self::EnvoyJwtCache,
        Self::BarePingora,
        Self::BestPingora,
        Self::Everything,
        Self::EverythingMtls,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaproxyJwt => "HAProxy, JWT",
            Self::EnvoyJwtCache => "Envoy, JWT and cache",
            Self::BarePingora => "bare Pingora",
            Self::BestPingora => "bare Pingora, LTO, mimalloc",
            Self::Everything => "gateway, everything on",
            Self::EverythingMtls => "the same, mTLS",
        }
    }
}

/// A running proxy.
pub struct Proxy {
    pub kind: Kind,
    pub addr: SocketAddr,
    pub process: Process,
}

/// How the gateway of a run is set up.
pub struct GatewaySetup<'a> {
    /// Its program, before it what it runs under.
    pub program: Command,
    /// By plain HTTP to its services.
    pub is_plain: bool,
    /// Routes besides the page's.
    pub other_routes: usize,
    /// Where its access log goes; its own log is beside it.
    pub log: &'a Path,
}

impl Proxy {
    /// Starts one and waits until it answers; `None` for a kind whose program is not given.
    pub async fn start(
        kind: Kind,
        programs: &Programs,
        around: &Surroundings,
        token: &str,
    ) -> anyhow::Result<Option<Self>> {
        let addr = free_address()?;
        let process = match kind {
            Kind::Nginx => nginx(addr, around)?,
            Kind::HaproxyJwt => haproxy(addr, around)?,
            Kind::EnvoyJwtCache => match &programs.envoy {
                Some(program) => envoy(program, addr, around)?,
                None => return Ok(None),
            },
            Kind::BarePingora => pingora(&programs.bare_pingora, addr, around)?,
            Kind::BestPingora => match &programs.best_pingora {
                Some(program) => pingora(program, addr, around)?,
                None => return Ok(None),
            },
            Kind::Everything | Kind::EverythingMtls => {
                let is_plain = kind == Kind::Everything;
                let log = around.folder().join(format!("gateway-{is_plain}.log"));
                let program = Command::new(&programs.gateway);
                gateway(
                    GatewaySetup { program, is_plain, other_routes: 0, log: &log },
                    addr,
                    around,
                )?
            }
        };
        let proxy = Self { kind, addr, process };
        proxy.answers(token).await?;
        Ok(Some(proxy))
    }

    /// Starts a gateway as set up, and waits until it answers.
    pub async fn gateway(
        setup: GatewaySetup<'_>,
        around: &Surroundings,
        token: &str,
    ) -> anyhow::Result<Self> {
        let addr = free_address()?;
        let proxy = Self { kind: Kind::Everything, addr, process: gateway(setup, addr, around)? };
        proxy.answers(token).await?;
        Ok(proxy)
    }

    async fn answers(&self, token: &str) -> anyhow::Result<()> {
        let (client, started) = (http_client::client(Duration::from_secs(5))?, Instant::now());
        let url = format!("http://{}/api/tour-spots?query=palace", self.addr);
        loop {
            let answer = client.get(&url).bearer_auth(token).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            ensure!(started.elapsed() < START, "{} does not answer", self.kind.name());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Who is to check tokens does.
        let checks = !matches!(self.kind, Kind::Nginx | Kind::BarePingora | Kind::BestPingora);
        let (claims, signature) = token.rsplit_once('.').context("a token has three parts")?;
        let signature: String = signature.chars().rev().collect();
        let forged = client.get(&url).bearer_auth(format!("{claims}.{signature}")).send().await?;
        ensure!(!checks || forged.status() == 401, "{} takes a forged token", self.kind.name());
        Ok(())
    }
}

fn nginx(addr: SocketAddr, around: &Surroundings) -> anyhow::Result<Process> {
    let [one, other] = around.upstreams;
    let http = format!(
        "upstream pages {{ server {one}; server {other}; keepalive 64; keepalive_requests 1000000000; }}\nserver {{ listen {addr}; location / {{ proxy_pass http://pages; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n"
    );
    let conf = around.folder().join("nginx.conf");
    fs::write(&conf, nginx_conf(around.folder(), "nginx", &http))?;
    Process::nginx(&conf)
}

fn haproxy(addr: SocketAddr, around: &Surroundings) -> anyhow::Result<Process> {
    let [one, other] = around.upstreams;
    let key = around.folder().join("token-key.pem");
    fs::write(&key, around.issuer.pem())?;
    let conf = around.folder().join("haproxy.conf");
    fs::write(
        &conf,
        format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout client 60s\n  timeout connect 5s\n  timeout server 60s\n  http-reuse always\nfrontend clients\n  bind {addr}\n  http-request set-var(txn.exp) http_auth_bearer,jwt_payload_query('$.exp','int')\n  http-request set-var(txn.now) date()\n  http-request deny deny_status 401 unless {{ http_auth_bearer,jwt_verify(\"ES256\",\"{}\") 1 }}\n  http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}\n  default_backend pages\nbackend pages\n  balance roundrobin\n  server one {one}\n  server other {other}\n",
            key.display()
        ),
    )?;
    Process::start(Command::new("haproxy").arg("-db").arg("-f").arg(&conf).stderr(Stdio::null()))
}

fn envoy(program: &Path, addr: SocketAddr, around: &Surroundings) -> anyhow::Result<Process> {
    let socket = |addr: SocketAddr| json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}});
    let keys = json!({"keys": [around.issuer.jwk()?]}).to_string();
    let jwt = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"core": {
            "issuer": ISSUER, "audiences": [AUDIENCE], "local_jwks": {"inline_string": keys},
            "jwt_cache_config": {"jwt_cache_size": CACHED_TOKENS},
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "core"}}],
    });
    let router =
        json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "pages"}}]}]},
        "http_filters": [
            {"name": "envoy.filters.http.jwt_authn", "typed_config": jwt},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    });
    let endpoints =
        around.upstreams.map(|upstream| json!({"endpoint": {"address": socket(upstream)}}));
    let conf = json!({"static_resources": {
        "listeners": [{"address": socket(addr), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]}]}],
        "clusters": [{
            "name": "pages", "type": "STATIC", "lb_policy": "ROUND_ROBIN", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "pages", "endpoints": [{"lb_endpoints": endpoints}]},
        }],
    }});
    let path = around.folder().join("envoy.json");
    fs::write(&path, conf.to_string())?;
    Process::start(
        Command::new(program)
            .arg("-c")
            .arg(&path)
            .args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"])
            .stderr(Stdio::null()),
    )
}

fn pingora(program: &Path, addr: SocketAddr, around: &Surroundings) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.args(["--listen", &addr.to_string()]);
    for upstream in around.upstreams {
        command.args(["--upstream", &upstream.to_string()]);
    }
    Process::start(command.stderr(Stdio::null()))
}

/// With everything on: what is on by default, a limit of calls on its route, a line in the access log for
/// each request, and a tenth of the traces.
fn gateway(
    setup: GatewaySetup<'_>,
    addr: SocketAddr,
    around: &Surroundings,
) -> anyhow::Result<Process> {
    let GatewaySetup { program: mut command, is_plain, other_routes, log } = setup;
    let service = if is_plain { PLAIN } else { SEALED };
    command
        .env("TOURIN_JOIN_TOKEN", around.mesh.join_token(GATEWAY)?)
        .args(["--registry-url", &around.mesh.registry_url, "--gateway-threads", "1"])
        .args(["--listen", &addr.to_string(), "--admin-listen", "127.0.0.1:0"])
        .arg("--routes")
        .arg(around.routes(service, other_routes)?)
        .args(["--token-cache-entries", &CACHED_TOKENS.to_string()])
        .args(["--zipkin-url", &format!("http://{}", around.collector), "--trace-ratio", "0.1"])
        .arg("--access-log")
        .arg(log)
        .stderr(File::create(log.with_extension("err"))?);
    if is_plain {
        command.arg("--plain");
    }
    Process::start(&mut command)
}
