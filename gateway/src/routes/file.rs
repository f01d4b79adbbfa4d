//! The file of `--routes`: read at the start, at a reload, and by `--check`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::{BUILT_IN, CurrentRoutes, RouteTable};
use crate::mesh_client::MeshClient;
use crate::reload::{Contents, Reloadable, read};

/// A route table's file.
pub struct RoutesFile {
    files: [PathBuf; 1],
    routes: Arc<CurrentRoutes>,
    mesh: MeshClient,
}

impl RoutesFile {
    /// The file `path`, by which `routes` are replaced. `mesh` calls their services.
    pub fn new(path: PathBuf, routes: Arc<CurrentRoutes>, mesh: MeshClient) -> Self {
        Self { files: [path], routes, mesh }
    }

    /// Reads the table in `file`, or the built-in one without a file. Also gives what was read.
    ///
    /// # Errors
    /// A file that cannot be read, or the first fault in it with its line.
    pub fn load(file: Option<&Path>) -> anyhow::Result<(RouteTable, Contents)> {
        let Some(file) = file else {
            let table = RouteTable::parse(BUILT_IN).context("the built-in routes")?;
            return Ok((table, Contents::default()));
        };
        let contents = read(&[file.to_owned()])?;
        Ok((parse(file, &contents)?, contents))
    }
}

impl Reloadable for RoutesFile {
    fn name(&self) -> &'static str {
        "routes"
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn apply(&self, contents: &Contents) -> anyhow::Result<String> {
        let table = parse(&self.files[0], contents)?;
        self.mesh.prepare(table.services())?;
        let version = table.version().to_owned();
        self.routes.replace(table);
        Ok(version)
    }
}

fn parse(file: &Path, contents: &Contents) -> anyhow::Result<RouteTable> {
    let shown = || file.display().to_string();
    let bytes = contents.iter().next().unwrap_or_default();
    let text = std::str::from_utf8(bytes).with_context(shown)?;
    RouteTable::parse(text).with_context(shown)
}

/// Checks the route table in `file` as a start and a reload do, and sums it up in a line.
///
/// # Errors
/// A file that cannot be read, or the first fault in it with its line.
pub fn check(file: &Path) -> anyhow::Result<String> {
    let (table, _) = RoutesFile::load(Some(file))?;
    let services: Vec<_> = table.services().iter().map(String::as_str).collect();
    Ok(format!(
        "{}: {} routes to {}; version {}",
        file.display(),
        table.iter().count(),
        services.join(", "),
        table.version()
    ))
}
