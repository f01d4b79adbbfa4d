//! The spans of a complete test process: its services and their calls.

use std::sync::OnceLock;

use super::memory::{MemoryLimits, MemoryStore};
use super::{TelemetrySettings, TraceSettings, init_with, stats};
use crate::config::{LogFormat, LogSettings};

/// All spans of this process from the first call on, within [`MemoryLimits`].
///
/// # Panics
/// When tracing cannot be started, or was started before.
pub fn all_spans() -> MemoryStore {
    static STORE: OnceLock<MemoryStore> = OnceLock::new();
    let start = || {
        let store = MemoryStore::new(MemoryLimits::default());
        let log = LogSettings { log_format: LogFormat::Text, log: "warn".to_owned() };
        let traces = TraceSettings {
            trace_ratio: 1.0,
            trace_flush_interval_ms: 20,
            ..TraceSettings::default()
        };
        init_with(TelemetrySettings { log, traces }, Some(store.clone())).expect("tracing starts");
        let kept = stats().destinations.iter().any(|(name, _)| *name == "memory");
        assert!(kept, "tracing was started before, and its spans go elsewhere");
        store
    };
    STORE.get_or_init(start).clone()
}
