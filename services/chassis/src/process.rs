//! The life of a service in its own process: build, run, stop.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::warn_of_unknown_variables;
use crate::shutdown::Shutdown;
use crate::telemetry::{self, TelemetrySettings};

/// Exit code when a setting or the machine prevents the start.
pub const CANNOT_START: u8 = 2;

/// How long a stopping process waits for the export of its last spans.
pub const LAST_SPANS: Duration = Duration::from_secs(1);

/// Starts logs and traces, builds the service, and runs it until SIGINT or SIGTERM.
///
/// The exit code is 0 after a clean stop, [`CANNOT_START`] when the build fails (with one line on
/// standard error), and 1 when the service fails later. A stop during the build, which may wait for
/// a server, is clean.
pub async fn run<S, B, R>(
    telemetry: impl Into<TelemetrySettings>,
    build: B,
    run_until_stopped: impl FnOnce(S, Shutdown) -> R,
) -> ExitCode
where
    B: Future<Output = anyhow::Result<S>>,
    R: Future<Output = anyhow::Result<()>>,
{
    if let Err(error) = telemetry::init(telemetry) {
        return refuse(&anyhow::Error::msg(error));
    }
    warn_of_unknown_variables();
    let stop = match Shutdown::on_signals() {
        Ok(stop) => stop,
        Err(error) => return refuse(&error.into()),
    };
    let ended = tokio::select! {
        built = build => match built {
            Ok(service) => {
                tracing::info!("traces go {}", telemetry::destinations());
                run_until_stopped(service, stop).await
            }
            Err(error) => return refuse(&error),
        },
        () = stop.begun() => Ok(()),
    };
    telemetry::flush(LAST_SPANS).await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the service failed");
            ExitCode::FAILURE
        }
    }
}

/// Refuses to start: one line on standard error, independent of the log's settings, and
/// [`CANNOT_START`].
pub fn refuse(error: &anyhow::Error) -> ExitCode {
    // If standard error is closed there is no place left to report to.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    ExitCode::from(CANNOT_START)
}
