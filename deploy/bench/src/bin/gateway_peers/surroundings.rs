//! What is around the proxies: two upstreams in plain HTTP and two with a certificate, a mesh in which they
//! are registered, a collector of spans, and tokens.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use http::StatusCode;
use tempfile::TempDir;
use tourin_bench::free_address;
use tourin_bench::mesh::{Mesh, local};
use tourin_registry_api::Workload;

use crate::proxies::Process;
use crate::tokens::Issuer;

/// The service whose instances answer by plain HTTP.
pub const PLAIN: &str = "pages";
/// The service whose instances are asked by mTLS.
pub const SEALED: &str = "sealed-pages";
const BODY_BYTES: usize = 1_024;

/// All of it. It ends with the process.
pub struct Surroundings {
    pub mesh: Mesh,
    pub issuer: Issuer,
    /// The upstreams by plain HTTP.
    pub upstreams: [SocketAddr; 2],
    /// Takes spans.
    pub collector: SocketAddr,
    folder: TempDir,
    _servers: Vec<Process>,
}

impl Surroundings {
    /// Starts it, with so many instances of each service.
    pub async fn start(instances: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let issuer = Issuer::new()?;
        let mut mesh = Mesh::with_token_key(issuer.jwk()?).await?;
        let (mut upstreams, mut servers) = ([local(); 2], Vec::new());
        for (number, upstream) in upstreams.iter_mut().enumerate() {
            let (plain, sealed) = (free_address()?, free_address()?);
            let workload = mesh.workload(SEALED, &format!("{SEALED}-{number}"))?;
            let conf = folder.path().join(format!("upstream-{number}.conf"));
            fs::write(&conf, upstream_conf(folder.path(), number, plain, (sealed, &workload))?)?;
            servers.push(Process::nginx(&conf)?);
            *upstream = plain;
            mesh.register(&workload, sealed)?;
        }
        for number in 0..instances {
            let workload = mesh.workload(PLAIN, &format!("{PLAIN}-{number}"))?;
            mesh.register(&workload, upstreams[number % upstreams.len()])?;
        }
        let takes = post(|_: axum::body::Bytes| async { StatusCode::ACCEPTED });
        let spans =
            Router::new().route("/api/v2/spans", takes).layer(DefaultBodyLimit::max(16 << 20));
        let listener = tokio::net::TcpListener::bind(local()).await?;
        let collector = listener.local_addr()?;
        tokio::spawn(axum::serve(listener, spans).into_future());
        Ok(Self { mesh, issuer, upstreams, collector, folder, _servers: servers })
    }

    /// A folder for files of this run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file with so many tokens, one in a line.
    pub fn tokens(&self, count: usize) -> anyhow::Result<PathBuf> {
        let path = self.folder().join(format!("tokens-{count}"));
        fs::write(&path, self.issuer.tokens(count)?.join("\n") + "\n")?;
        Ok(path)
    }

    /// A route table that sends the page's path to `service`, and has so many other routes.
    pub fn routes(&self, service: &str, others: usize) -> anyhow::Result<PathBuf> {
        let path = self.folder().join(format!("routes-{service}-{others}.toml"));
        let mut text = route("/api/tour-spots", service, "rate_per_minute = 1000000\n");
        for number in 0..others {
            text.push_str(&route(&format!("/api/other-{number}/{{id}}"), service, ""));
        }
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn route(path: &str, service: &str, more: &str) -> String {
    format!(
        "[[route]]\npath = \"{path}\"\nservice = \"{service}\"\nmethods = {{ GET = \"session\" }}\n{more}\n"
    )
}

/// What every nginx of a run has: one process, and no files outside of the folder.
pub fn nginx_conf(folder: &Path, name: &str, http: &str) -> String {
    let at = folder.display();
    let mut conf = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {at}/{name}.pid;\nerror_log stderr crit;\nworker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\nhttp {{\naccess_log off;\nkeepalive_requests 1000000000;\nkeepalive_timeout 300s;\n"
    );
    for path in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        // Writing to a String cannot fail.
        let _ = writeln!(conf, "{path}_temp_path {at}/{name}-{path};");
    }
    conf + http + "}\n"
}

fn upstream_conf(
    folder: &Path,
    number: usize,
    plain: SocketAddr,
    (sealed, workload): (SocketAddr, &Workload),
) -> anyhow::Result<String> {
    let name = format!("upstream-{number}");
    let [chain, key, roots] =
        ["chain", "key", "roots"].map(|part| folder.join(format!("{name}-{part}.pem")));
    let pem = |label: &str, der: &[u8]| pem::encode(&pem::Pem::new(label, der));
    let all = |ders: Vec<_>| -> String {
        ders.iter()
            .map(|der: &rustls::pki_types::CertificateDer<'_>| pem("CERTIFICATE", der))
            .collect()
    };
    fs::write(&chain, all(workload.chain()))?;
    fs::write(&key, pem("PRIVATE KEY", workload.key()))?;
    fs::write(&roots, all(workload.roots()))?;
    let page = format!(
        "location / {{ default_type application/json; return 200 '[{{\"text\":\"{}\"}}]'; }}",
        "x".repeat(BODY_BYTES)
    );
    let servers = format!(
        "server {{ listen {plain}; {page} }}\nserver {{ listen {sealed} ssl; ssl_protocols TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on; ssl_verify_depth 3; {page} }}\n",
        chain.display(),
        key.display(),
        roots.display()
    );
    Ok(nginx_conf(folder, &name, &servers))
}
