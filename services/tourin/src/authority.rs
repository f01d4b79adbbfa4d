//! `tourin join-token` and `tourin rotate-root`: the mesh's authority, in the registry.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, value_parser};
use tourin_chassis::config::MeshAccess;
use tourin_registry_api::wire::JoinTokenRequest;

use crate::audit::duration;
use crate::joined;

/// A join token to make.
#[derive(Debug, Clone, Args)]
pub struct JoinTokenSettings {
    /// The service whose instances it lets join, such as gateway, core or recommendation; operator for
    /// commands such as this one
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// How many instances may join by it [default: any number]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// How long it is valid, such as 30s, 10m, 12h or 30d; at most 365d
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub ttl: Duration,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// The mesh whose root is replaced.
#[derive(Debug, Clone, Args)]
pub struct RotateRootSettings {
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// Prints a join token.
///
/// # Errors
/// When the registry does not answer, or refuses.
pub async fn join_token(settings: &JoinTokenSettings) -> anyhow::Result<ExitCode> {
    let request = JoinTokenRequest {
        service: settings.service.clone(),
        uses: settings.uses,
        ttl_s: settings.ttl.as_secs(),
    };
    let token = joined::join(&settings.mesh).await?.registry.join_token(&request).await?;
    writeln!(std::io::stdout(), "{token}")?;
    Ok(ExitCode::SUCCESS)
}

/// Begins to replace the root.
///
/// # Errors
/// When the registry does not answer, or refuses.
pub async fn rotate_root(settings: &RotateRootSettings) -> anyhow::Result<ExitCode> {
    joined::join(&settings.mesh).await?.registry.rotate_root().await?;
    writeln!(
        std::io::stdout(),
        "the new root is trusted from now on, signs after the life of a certificate, and is the only one \
         after two"
    )?;
    Ok(ExitCode::SUCCESS)
}
