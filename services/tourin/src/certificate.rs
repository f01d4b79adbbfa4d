//! `tourin certificate`: an operator's certificate in files, for programs that are no part of Tourin, such
//! as a Prometheus on another machine.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use tourin_chassis::config::MeshAccess;

use crate::joined;

/// Characters in a line of PEM (RFC 7468, 2).
const LINE_CHARS: usize = 64;

/// Where the certificate goes.
#[derive(Debug, Clone, Args)]
pub struct CertificateSettings {
    /// Folder for certificate.pem, key.pem and roots.pem, which only their owner can read; made if absent.
    /// Files of these names are replaced, each at once
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// Writes a new certificate with its key, and the mesh's roots.
///
/// # Errors
/// When the registry does not answer or refuses the join token, or a file cannot be written.
pub async fn run(settings: &CertificateSettings) -> anyhow::Result<ExitCode> {
    let joined = joined::join(&settings.mesh).await?;
    let workload = &joined.workload;
    let folder = &settings.out;
    let shown = || format!("--out {}", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(shown)?;
    // A reader in between has an old certificate with its own key, or the new key with an old certificate,
    // which it refuses and reads again.
    for (name, text) in [
        ("roots.pem", certificates(&workload.roots())),
        ("key.pem", pem("PRIVATE KEY", workload.key())),
        ("certificate.pem", certificates(&workload.chain())),
    ] {
        write_private(&folder.join(name), &text).with_context(shown)?;
    }
    let name = workload.name();
    writeln!(
        std::io::stdout(),
        "{}/certificate.pem is valid for {} s, for {}/{} of the mesh {}: run this again before half of that is over",
        folder.display(),
        workload.left().as_secs(),
        name.service,
        name.instance,
        name.mesh,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn certificates(all: &[impl AsRef<[u8]>]) -> String {
    all.iter().map(|one| pem("CERTIFICATE", one.as_ref())).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(LINE_CHARS)
        .map(|at| &text[at..text.len().min(at + LINE_CHARS)])
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Replaces the file at once, so that no reader sees a part of it.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    // Left by a run that was killed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(path.with_extension("new"), "left over").unwrap();
        for text in ["one", "another"] {
            write_private(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn pem_has_short_lines() {
        let text = pem("CERTIFICATE", &[7; 100]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            (lines[0], lines[4]),
            ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")
        );
        assert_eq!((lines[1].len(), lines[2].len(), lines[3].len()), (64, 64, 8));
    }
}
