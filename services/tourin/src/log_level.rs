//! `tourin log-level`: reads or sets the log filter of a running service.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::http_client;
use tourin_registry_api::{ADMIN_ADDRESS, Instance, Joined, REGISTRY};

use crate::joined;

const TIMEOUT_MS: u64 = 5_000;
/// The longest response, in bytes: a filter, or the reason of a refusal.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The service and its log filter.
#[derive(Debug, Clone, Args)]
pub struct LogLevelSettings {
    /// gateway, registry, core or recommendation. In `tourin up` they share one process and so one
    /// filter
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// What to log from now until the process ends, in the form of --log, such as
    /// info,tourin_core=debug; without it, what is logged now is shown
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// Only this instance
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// Reads or sets the filter, and prints it for each instance. Exit code 1 when one did not answer.
///
/// # Errors
/// When the registry does not answer, or knows no such instance.
pub async fn run(settings: &LogLevelSettings) -> anyhow::Result<ExitCode> {
    let joined = joined::join(&settings.mesh).await?;
    let targets = targets(settings, &joined).await?;
    let tls = joined.workload.client_config(&settings.service)?;
    let client = http_client::mesh_client(tls, Duration::from_millis(TIMEOUT_MS))?;
    let mut code = ExitCode::SUCCESS;
    for (id, base) in targets {
        let url = format!("{base}/internal/log-filter");
        let request = match &settings.filter {
            Some(filter) => client.put(url).body(filter.clone()),
            None => client.get(url),
        };
        let line = match call(request).await {
            Ok(filter) => filter,
            Err(error) => {
                code = ExitCode::FAILURE;
                format!("{error:#}")
            }
        };
        writeln!(std::io::stdout(), "{id}  {line}")?;
    }
    Ok(code)
}

async fn call(request: reqwest::RequestBuilder) -> anyhow::Result<String> {
    let response = http_client::send(request, MAX_RESPONSE_BYTES).await?;
    let (status, body) = (response.status(), response.body());
    if status.is_success() {
        return Ok(String::from_utf8_lossy(body).into_owned());
    }
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    bail!("{status}: {}", body["message"].as_str().unwrap_or("no reason given"))
}

async fn targets(
    settings: &LogLevelSettings,
    joined: &Joined,
) -> anyhow::Result<Vec<(String, String)>> {
    let bases =
        || settings.mesh.registry_url.split(',').map(|url| url.trim().trim_end_matches('/'));
    if settings.service == REGISTRY {
        // Registries have no names of their own.
        let named = |url: &str| {
            let is_one = bases().count() == 1;
            (if is_one { REGISTRY.to_owned() } else { url.to_owned() }, url.to_owned())
        };
        return Ok(bases().map(named).collect());
    }
    let known =
        joined.registry.list(Some(&settings.service)).await.context("the registry")?.instances;
    let wanted =
        |instance: &Instance| settings.instance.as_ref().is_none_or(|id| *id == instance.id);
    let targets: Vec<_> = known
        .iter()
        .filter(|instance| wanted(instance))
        .map(|instance| (instance.id.clone(), operators_url(instance)))
        .collect();
    if targets.is_empty() {
        let base = joined.registry.url();
        bail!("the registry at {base} knows no such instance of {}", settings.service);
    }
    Ok(targets)
}

/// The URL for internal calls: a gateway has a separate listener for operators.
fn operators_url(instance: &Instance) -> String {
    match instance.metadata.get(ADMIN_ADDRESS) {
        Some(admin) => format!("https://{admin}"),
        None => instance.base_url(),
    }
}
