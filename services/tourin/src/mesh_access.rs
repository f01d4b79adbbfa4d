//! How a command enters a mesh that runs already.

use clap::Args;
use tourin_chassis::secret::Secret;

/// Where the mesh's registry is, and what proves that one may ask it.
#[derive(Debug, Clone, Args)]
pub struct MeshAccess {
    /// Where the registry answers, which knows the instances
    #[arg(
        long,
        env = "TOURIN_REGISTRY_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8500"
    )]
    pub registry_url: String,
    /// Secret shared by the mesh. `tourin up` writes it and the registry's URL into mesh.toml in its
    /// data folder, for --config
    #[arg(long, env = "TOURIN_REGISTRATION_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub registration_secret: Secret,
}
