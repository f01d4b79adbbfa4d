//! The server that registries share, and the scripts that run there.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use redis::aio::ConnectionManager;
use redis::{FromRedisValue, Script, ScriptInvocation};
use tourin_chassis::redis::{RedisUrl, connection};

use crate::app::ports::Unavailable;
use crate::domain::MAX_PAUSE;

/// The server, and the scripts.
#[derive(Clone)]
pub(crate) struct Redis {
    pub(super) connection: ConnectionManager,
    pub(super) url: RedisUrl,
    /// Host and port, without credentials.
    pub(super) address: String,
    base: String,
    history: usize,
    pub(super) scripts: Arc<Scripts>,
}

macro_rules! scripts {
    ($($name:ident),*) => {
        pub(super) struct Scripts { $(pub(super) $name: Script),* }

        impl Scripts {
            fn new() -> Self {
                Self { $($name: Script::new(concat!(
                    include_str!("scripts/common.lua"),
                    include_str!(concat!("scripts/", stringify!($name), ".lua"))
                ))),* }
            }
        }
    };
}

scripts!(register, renew, drain, deregister, decide, leases, sweep, lift, load, watch, count_use);

impl Redis {
    /// The server at `url`, with keys under `prefix`. Nothing is sent before the first use.
    ///
    /// # Errors
    /// When the URL or the prefix cannot be used. Names the flag, without the URL.
    pub(crate) fn new(url: &RedisUrl, prefix: &str, history: usize) -> anyhow::Result<Self> {
        ensure!(
            !prefix.is_empty() && !prefix.contains(['{', '}']),
            "--registry-redis-prefix {prefix:?}: expected a text without braces"
        );
        let (connection, address) = connection(url).context("--registry-redis-url")?;
        let (base, scripts) = (format!("{{{prefix}}}:"), Arc::new(Scripts::new()));
        Ok(Self { connection, url: url.clone(), address, base, history, scripts })
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    /// A call with what all scripts need.
    pub(super) fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(self.key("version")).arg(&self.base).arg(self.history);
        call.arg(MAX_PAUSE.num_milliseconds());
        call
    }

    /// Runs a script; repeats it once if the connection was dropped, as by a restart of the server. Each can
    /// be repeated.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, Unavailable> {
        let ran = match call.invoke_async(&mut self.connection.clone()).await {
            Err(error) if error.is_connection_dropped() => {
                call.invoke_async(&mut self.connection.clone()).await
            }
            ran => ran,
        };
        ran.map_err(|error| {
            Unavailable(anyhow::Error::new(error).context(format!("redis at {}", self.address)))
        })
    }
}
