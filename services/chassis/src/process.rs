//! The life of a service that is a process of its own: build, run, stop.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::warn_of_unknown_variables;
use crate::shutdown::Shutdown;
use crate::telemetry::{self, TelemetrySettings};

/// What a shell sees when a setting or the machine stood in the way of starting.
pub const CANNOT_START: u8 = 2;

/// How long a stopping process waits for its last spans to be taken.
pub const LAST_SPANS: Duration = Duration::from_secs(1);

/// Starts logs and traces, builds the service, and runs it until SIGINT or SIGTERM.
///
/// Exit code 0 after a clean stop, which may come while the service is still being built (it may wait
/// for a server), [`CANNOT_START`] with one line on standard error when it could not be built, 1 when
/// it failed later.
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

/// A start that cannot be: one line, whatever the log's settings, and [`CANNOT_START`].
pub fn refuse(error: &anyhow::Error) -> ExitCode {
    // Whoever has closed standard error is not told; a panic would not tell either.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    ExitCode::from(CANNOT_START)
}
