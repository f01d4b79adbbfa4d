//! The mesh under measurement: the all-in-one as a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tourin_chassis::http_client;
use tourin_chassis::peer::OPERATOR;
use tourin_registry_api::{Joined, Joining};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);

pub struct Mesh {
    pub http: Client,
    pub url: String,
    /// This process, as an operator of the mesh.
    pub operator: Joined,
    process: Child,
    _folder: TempDir,
}

impl Mesh {
    pub async fn start(program: &Path) -> anyhow::Result<Self> {
        for server in ["MYSQL", "REDIS", "MONGODB", "AMQP"] {
            let variable = format!("TOURIN_{server}_URL");
            ensure!(
                std::env::var_os(&variable).is_some_and(|url| !url.is_empty()),
                "{variable} is not set; run this by deploy/bench.sh"
            );
        }
        let folder = tempfile::tempdir()?;
        let mut process = Command::new(program)
            .args(["up", "--listen", "127.0.0.1:0", "--replicas", "recommendation=1", "--data-dir"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        let url = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.trim().strip_prefix("URL ") {
                    return Ok(url.trim().to_owned());
                }
            }
            anyhow::bail!("tourin ended before it was ready")
        };
        let url = timeout(START_LIMIT, url).await.context("tourin does not get ready")??;
        // Later output is read and dropped, so that the process never blocks on it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let entry = std::fs::read_to_string(folder.path().join("mesh.toml"))?;
        let value = |key: &str| {
            entry
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
                .map(ToOwned::to_owned)
                .with_context(|| format!("mesh.toml has no {key}"))
        };
        let (registry_url, token) = (value("registry-url")?, value("join-token")?);
        let joining = Joining::new(
            (
                registry_url.clone(),
                Arc::new(move || Ok(token.clone())),
                http_client::registry_client,
            ),
            (OPERATOR, "bench"),
        );
        let operator =
            timeout(START_LIMIT, joining.join(None)).await.context("the registry is silent")??;
        Ok(Self {
            http: http_client::client(Duration::from_secs(10))?,
            url,
            operator,
            process,
            _folder: folder,
        })
    }

    /// The ids of the catalogue's first spots.
    pub async fn spots(&self) -> anyhow::Result<Vec<String>> {
        let mut ids = Vec::new();
        for page in 1..=4 {
            let url = format!("{}/api/tour-spots?pageSize=100&pageNo={page}", self.url);
            let spots: Value = self.http.get(url).send().await?.error_for_status()?.json().await?;
            let spots = spots.as_array().context("a list of spots")?;
            ids.extend(spots.iter().filter_map(|spot| spot["id"].as_str().map(ToOwned::to_owned)));
        }
        ensure!(!ids.is_empty(), "the catalogue is empty");
        Ok(ids)
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("it runs")?.to_string();
        Command::new("kill").arg(pid).status().await?;
        timeout(STOP_LIMIT, self.process.wait()).await.context("tourin does not stop")??;
        Ok(())
    }
}
