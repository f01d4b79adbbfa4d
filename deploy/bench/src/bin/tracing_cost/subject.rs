//! What is measured: a program, its cases, and the requests that it gets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tourin_bench::load::{self, Requests};
use tourin_bench::mesh::Mesh;
use tourin_chassis::identity::{IDENTITY_HEADER, Subject as Caller};

use crate::mesh::Surroundings;
use crate::server::{Case, Exporter, Server};

const GATEWAY_CASES: [Case; 9] = [
    case("off", 0.0, Exporter::None),
    case("off, again", 0.0, Exporter::None),
    case("1 %", 0.01, Exporter::Up),
    case("10 %", 0.1, Exporter::Up),
    case("100 %", 1.0, Exporter::Up),
    case("1 %, dead", 0.01, Exporter::Dead),
    case("10 %, dead", 0.1, Exporter::Dead),
    case("100 %, dead", 1.0, Exporter::Dead),
    // Without the export of unsampled requests that fail or are slow.
    Case { keeps_back: false, ..case("10 %, none kept back", 0.1, Exporter::Up) },
];
const CORE_CASES: [Case; 5] = [
    case("off", 0.0, Exporter::None),
    case("off, again", 0.0, Exporter::None),
    case("10 %", 0.1, Exporter::Up),
    case("10 %, dead", 0.1, Exporter::Dead),
    Case { keeps_back: false, ..case("10 %, none kept back", 0.1, Exporter::Up) },
];
/// How long core runs before it is measured. Its start uses tokio's blocking threads, which end after 10 s without work
/// (tokio's default). The processor time of a process is the sum over its living threads, so an end of one of them
/// during a round would make that round cheaper.
const CORE_SETTLING: Duration = Duration::from_secs(11);
/// The member whose bookmarks are placed.
const MEMBER: &str = "benchmark1";

const fn case(name: &'static str, ratio: f64, exporter: Exporter) -> Case {
    Case { name, ratio, exporter, keeps_back: true }
}

/// What the requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// The gateway passes on a page of 1 KiB.
    Page,
    /// Core searches its catalogue.
    Search,
    /// Core places a bookmark, and removes it.
    Bookmark,
}

/// A program and its requests.
pub struct Subject {
    pub name: &'static str,
    pub cases: &'static [Case],
    /// The most that 10 % of the traces may cost, as a part of the program's processor time.
    pub bound: f64,
    /// How long to wait before it is measured.
    pub settling: Duration,
    program: PathBuf,
    load: Load,
}

/// The measurements of these programs.
pub fn subjects(gateway: Option<&Path>, core: Option<&Path>) -> Vec<Subject> {
    let gateway = gateway.into_iter().map(|program| Subject {
        name: "gateway, a page of 1 KiB",
        cases: &GATEWAY_CASES,
        bound: 0.02,
        settling: Duration::ZERO,
        program: program.to_owned(),
        load: Load::Page,
    });
    let of_core = [("core, a search", Load::Search), ("core, a bookmark", Load::Bookmark)];
    let core = core.into_iter().flat_map(move |program| {
        of_core.map(|(name, load)| Subject {
            name,
            cases: &CORE_CASES,
            bound: 0.03,
            settling: CORE_SETTLING,
            program: program.to_owned(),
            load,
        })
    });
    gateway.chain(core).collect()
}

impl Subject {
    /// Starts the program.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(
        &self,
        case: Case,
        around: &Surroundings,
        log: &str,
    ) -> anyhow::Result<Server> {
        match self.load {
            Load::Page => Server::gateway(&self.program, case, around, log).await,
            Load::Search => Server::core(&self.program, case, around, log).await,
            Load::Bookmark => {
                let server = Server::core(&self.program, case, around, log).await?;
                sign_up(&server, &around.mesh).await?;
                Ok(server)
            }
        }
    }

    /// The requests of each connection. They hold for [`tourin_chassis::identity::IDENTITY_TTL_S`].
    ///
    /// # Errors
    /// When the server's spots cannot be read.
    pub async fn requests(
        &self,
        server: &Server,
        mesh: &Mesh,
        connections: usize,
    ) -> anyhow::Result<Vec<Requests>> {
        let all_the_same = |path| vec![Arc::from([load::get(path, "")]); connections];
        match self.load {
            Load::Page => Ok(all_the_same("/api/tour-spots?query=palace")),
            // Seoul.
            Load::Search => Ok(all_the_same("/api/tour-spots?query=%EC%84%9C%EC%9A%B8")),
            Load::Bookmark => {
                let spots = spot_ids(server, mesh, connections).await?;
                Ok(spots.iter().map(|spot| bookmark(spot, mesh)).collect())
            }
        }
    }
}

async fn sign_up(server: &Server, mesh: &Mesh) -> anyhow::Result<()> {
    let account = json!({
        "id": MEMBER, "password": "sea-breeze1!", "name": "Bench", "email": "bench@example.com",
    });
    let url = format!("https://{}/api/auth/signup", server.target.addr);
    mesh.client("core")?.post(url).json(&account).send().await?.error_for_status()?;
    Ok(())
}

async fn spot_ids(server: &Server, mesh: &Mesh, count: usize) -> anyhow::Result<Vec<String>> {
    let url = format!("https://{}/api/tour-spots?pageSize={count}", server.target.addr);
    let spots: Value =
        mesh.client("core")?.get(url).send().await?.error_for_status()?.json().await?;
    let spots = spots.as_array().context("spots are not a list")?;
    spots.iter().map(|spot| Ok(spot["id"].as_str().context("no id")?.to_owned())).collect()
}

fn bookmark(spot: &str, mesh: &Mesh) -> Requests {
    let caller =
        Caller::Member { id: MEMBER.to_owned(), session: "bench".to_owned(), roles: Vec::new() };
    let identity = mesh.identity(&caller, "core");
    let identity = identity.to_str().unwrap_or_default();
    let headers = format!("{IDENTITY_HEADER}: {identity}\r\nContent-Type: application/json\r\n");
    let path = format!("/api/users/{MEMBER}/bookmarks");
    Arc::from([
        load::request("POST", &path, &headers, &json!({ "tourSpotId": spot }).to_string()),
        load::request("DELETE", &format!("{path}/{spot}"), &headers, ""),
    ])
}
