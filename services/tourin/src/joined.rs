//! An operator's command as a peer of the mesh.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::peer::OPERATOR;
use tourin_registry_api::{Joined, Joining};

/// How long a command waits for the registry.
const LIMIT: Duration = Duration::from_secs(10);

/// Joins as an operator, for as long as the command runs.
///
/// # Errors
/// When the registry does not answer, or refuses the join token.
pub(crate) async fn join(access: &MeshAccess) -> anyhow::Result<Joined> {
    let id = format!("command-{}", uuid::Uuid::new_v4().simple());
    let joining = Joining::new(access.registry(), (OPERATOR, &id));
    let joined = timeout(LIMIT, joining.join(None)).await;
    let joined = joined
        .with_context(|| format!("the registry at {} does not answer", access.registry_url))?;
    Ok(joined?)
}
