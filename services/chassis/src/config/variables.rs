//! The environment variables of Tourin's programs, to find misspelt ones.
//!
//! A variable that no program reads is silently ignored. So each program logs at its start the
//! variables with Tourin's prefix that no program knows. It also knows those of the other programs,
//! because a mesh often has one file of variables for all of them.

use std::collections::BTreeSet;

/// The prefix of Tourin's variables.
const PREFIX: &str = "TOURIN_";

/// The variables of all programs and commands. The services do not know each other, so they are
/// listed here. A test of the crate that links them all compares the list with their settings.
pub const VARIABLES: &[&str] = &[
    "TOURIN_ACCESS_TOKEN_S",
    "TOURIN_ADVERTISE",
    "TOURIN_ALLOWED_ORIGIN",
    "TOURIN_ALLOW_PLAINTEXT",
    "TOURIN_AMQP_PREFIX",
    "TOURIN_AMQP_URL",
    "TOURIN_AUDIT_DURATION",
    "TOURIN_AUDIT_IN_FLIGHT",
    "TOURIN_AUDIT_MAX_WAIT",
    "TOURIN_AUDIT_MEMBERS",
    "TOURIN_AUDIT_RATE",
    "TOURIN_AUDIT_REQUEST_TIMEOUT_MS",
    "TOURIN_AUDIT_SETTLE",
    "TOURIN_AUDIT_TRIES",
    "TOURIN_AUTHORITY_CERTIFICATES",
    "TOURIN_AUTHORITY_KEY",
    "TOURIN_CERTIFICATE_LIFETIME_S",
    "TOURIN_CONFIG",
    "TOURIN_COOKIE_SECURE",
    "TOURIN_CORE_DATABASE_READERS",
    "TOURIN_CORE_DATA_DIR",
    "TOURIN_CORE_DRAIN_TIMEOUT_MS",
    "TOURIN_CORE_LISTEN",
    "TOURIN_DATA_DIR",
    "TOURIN_DEMO_DURATION_S",
    "TOURIN_DEMO_MEMBERS",
    "TOURIN_DEMO_RATE",
    "TOURIN_DEMO_SEED",
    "TOURIN_EPHEMERAL",
    "TOURIN_EVENT_MAX_AHEAD_S",
    "TOURIN_GATEWAY_ACCESS_LOG",
    "TOURIN_GATEWAY_ACCESS_LOG_QUEUE",
    "TOURIN_GATEWAY_ACCESS_LOG_RATIO",
    "TOURIN_GATEWAY_ADAPTIVE_LIMIT_INITIAL",
    "TOURIN_GATEWAY_ADAPTIVE_LIMIT_MAX",
    "TOURIN_GATEWAY_ADAPTIVE_LIMIT_MIN",
    "TOURIN_GATEWAY_ADMIN_HOSTS",
    "TOURIN_GATEWAY_ADMIN_LISTEN",
    "TOURIN_GATEWAY_ALLOWED_ORIGIN",
    "TOURIN_GATEWAY_BODY_LIMIT_BYTES",
    "TOURIN_GATEWAY_BREAKER_FAILURE_PERCENT",
    "TOURIN_GATEWAY_BREAKER_HALF_OPEN_CALLS",
    "TOURIN_GATEWAY_BREAKER_MINIMUM_CALLS",
    "TOURIN_GATEWAY_BREAKER_OPEN_MS",
    "TOURIN_GATEWAY_BREAKER_SLOW_CALL_MS",
    "TOURIN_GATEWAY_BREAKER_SLOW_PERCENT",
    "TOURIN_GATEWAY_BREAKER_WINDOW_CALLS",
    "TOURIN_GATEWAY_CACHE_BYTES",
    "TOURIN_GATEWAY_CLIENT_FIRST_BYTE_MS",
    "TOURIN_GATEWAY_CLIENT_IDLE_MS",
    "TOURIN_GATEWAY_CLIENT_STALL_MS",
    "TOURIN_GATEWAY_CONNECT_TIMEOUT_MS",
    "TOURIN_GATEWAY_DRAIN_TIMEOUT_MS",
    "TOURIN_GATEWAY_EJECT_FAILURES",
    "TOURIN_GATEWAY_EJECT_FAILURE_PERCENT",
    "TOURIN_GATEWAY_EJECT_INTERVAL_MS",
    "TOURIN_GATEWAY_EJECT_LATENCY_FACTOR",
    "TOURIN_GATEWAY_EJECT_MAX_MS",
    "TOURIN_GATEWAY_EJECT_MAX_PERCENT",
    "TOURIN_GATEWAY_EJECT_MIN_CALLS",
    "TOURIN_GATEWAY_EJECT_MS",
    "TOURIN_GATEWAY_EJECT_TIMEOUTS",
    "TOURIN_GATEWAY_FIRST_BYTE_TIMEOUT_MS",
    "TOURIN_GATEWAY_FORWARDING_HEADER",
    "TOURIN_GATEWAY_HANDOVER_DRAIN_MS",
    "TOURIN_GATEWAY_HANDOVER_READY_MS",
    "TOURIN_GATEWAY_HANDOVER_SOCKET",
    "TOURIN_GATEWAY_HEADER_LIMIT_BYTES",
    "TOURIN_GATEWAY_HEADER_LIMIT_COUNT",
    "TOURIN_GATEWAY_HEADER_READ_TIMEOUT_MS",
    "TOURIN_GATEWAY_HEALTH_CHECK_FAILURES",
    "TOURIN_GATEWAY_HEALTH_CHECK_INTERVAL_MS",
    "TOURIN_GATEWAY_HEALTH_CHECK_PATH",
    "TOURIN_GATEWAY_HEALTH_CHECK_TIMEOUT_MS",
    "TOURIN_GATEWAY_HSTS",
    "TOURIN_GATEWAY_HTTP2_MAX_STREAMS",
    "TOURIN_GATEWAY_LISTEN",
    "TOURIN_GATEWAY_MAX_CONNECTIONS",
    "TOURIN_GATEWAY_MAX_CONNECTIONS_PER_CLIENT",
    "TOURIN_GATEWAY_MAX_REQUESTS",
    "TOURIN_GATEWAY_MAX_REQUESTS_PER_CLIENT",
    "TOURIN_GATEWAY_MAX_STREAMS",
    "TOURIN_GATEWAY_MAX_STREAMS_PER_CLIENT",
    "TOURIN_GATEWAY_METRICS_URL",
    "TOURIN_GATEWAY_MIRROR_REQUESTS",
    "TOURIN_GATEWAY_PANIC_PERCENT",
    "TOURIN_GATEWAY_PROXY_PROTOCOL",
    "TOURIN_GATEWAY_RESPONSE_HEADERS",
    "TOURIN_GATEWAY_RETRY_BUDGET_MIN",
    "TOURIN_GATEWAY_RETRY_BUDGET_PERCENT",
    "TOURIN_GATEWAY_RETRY_PAUSE_MS",
    "TOURIN_GATEWAY_REVOCATION_CANARY_MS",
    "TOURIN_GATEWAY_REVOCATION_STALE_MS",
    "TOURIN_GATEWAY_REVOCATION_WHEN_STALE",
    "TOURIN_GATEWAY_ROUTES",
    "TOURIN_GATEWAY_SILENCE_MS",
    "TOURIN_GATEWAY_SLOW_START_MS",
    "TOURIN_GATEWAY_STREAM_IDLE_MS",
    "TOURIN_GATEWAY_THREADS",
    "TOURIN_GATEWAY_TLS_CERTIFICATES",
    "TOURIN_GATEWAY_TLS_KEYS",
    "TOURIN_GATEWAY_TOKEN_AUDIENCE",
    "TOURIN_GATEWAY_TOKEN_CACHE_ENTRIES",
    "TOURIN_GATEWAY_TOKEN_ISSUER",
    "TOURIN_GATEWAY_TOKEN_LEEWAY_S",
    "TOURIN_GATEWAY_TOTAL_TIMEOUT_MS",
    "TOURIN_GATEWAY_TRACES_URL",
    "TOURIN_GATEWAY_TRUSTED_PROXIES",
    "TOURIN_GATEWAY_UPSTREAM_IDLE_MS",
    "TOURIN_GATEWAY_UPSTREAM_TRIES",
    "TOURIN_GATEWAY_URI_LIMIT_BYTES",
    "TOURIN_GATEWAY_URL",
    "TOURIN_GATEWAY_WATCH_INTERVAL_MS",
    "TOURIN_HEARTBEAT_MS",
    "TOURIN_HISTORY_LIMIT",
    "TOURIN_HISTORY_MAX_AGE_S",
    "TOURIN_IMPORT_FORMAT",
    "TOURIN_INSTANCE_ID",
    "TOURIN_JOIN_TOKEN",
    "TOURIN_JOIN_TOKENS",
    "TOURIN_JOIN_TOKEN_FILE",
    "TOURIN_LEASE_MS",
    "TOURIN_LISTEN",
    "TOURIN_LOG",
    "TOURIN_LOGIN_ACCOUNTS",
    "TOURIN_LOGIN_ACCOUNT_BURST",
    "TOURIN_LOGIN_ACCOUNT_REFILL_MS",
    "TOURIN_LOGIN_BURST",
    "TOURIN_LOGIN_NETWORK_BURST",
    "TOURIN_LOGIN_NETWORK_REFILL_MS",
    "TOURIN_LOGIN_REFILL_MS",
    "TOURIN_LOG_FORMAT",
    "TOURIN_MAP_SPOTS",
    "TOURIN_MESH",
    "TOURIN_MONGODB_URL",
    "TOURIN_MYSQL_READERS",
    "TOURIN_MYSQL_URL",
    "TOURIN_MYSQL_WRITERS",
    "TOURIN_NEIGHBOURS_MAX_AGE_MS",
    "TOURIN_NO_DEMO",
    "TOURIN_OPERATOR_HOSTS",
    "TOURIN_OPERATOR_LISTEN",
    "TOURIN_OTLP_URL",
    "TOURIN_PASSWORD_CONCURRENCY",
    "TOURIN_PASSWORD_ITERATIONS",
    "TOURIN_PASSWORD_MEMORY_KIB",
    "TOURIN_PASSWORD_PARALLELISM",
    "TOURIN_PASSWORD_WAIT_MS",
    "TOURIN_PREVIOUS_SIGNING_KEYS",
    "TOURIN_READINESS_INTERVAL_MS",
    "TOURIN_RECOMMENDATION_DATA_DIR",
    "TOURIN_RECOMMENDATION_DRAIN_TIMEOUT_MS",
    "TOURIN_RECOMMENDATION_LISTEN",
    "TOURIN_RECOMMENDATION_REDIS_PREFIX",
    "TOURIN_REDIS_URL",
    "TOURIN_REFRESH_GRACE_MS",
    "TOURIN_REGISTRY_DATA_DIR",
    "TOURIN_REGISTRY_HISTORY",
    "TOURIN_REGISTRY_LISTEN",
    "TOURIN_REGISTRY_MAX_INSTANCES",
    "TOURIN_REGISTRY_MAX_INSTANCES_PER_SERVICE",
    "TOURIN_REGISTRY_MAX_WATCHERS",
    "TOURIN_REGISTRY_MAX_WATCHES_PER_PEER",
    "TOURIN_REGISTRY_PROTECTION_MIN_INSTANCES",
    "TOURIN_REGISTRY_PROTECTION_PERCENT",
    "TOURIN_REGISTRY_REDIS_PREFIX",
    "TOURIN_REGISTRY_REDIS_URL",
    "TOURIN_REGISTRY_URL",
    "TOURIN_REGISTRY_VERIFY",
    "TOURIN_REPLICAS",
    "TOURIN_RESYNC_INTERVAL_S",
    "TOURIN_ROUTES",
    "TOURIN_SESSIONS_PER_MEMBER",
    "TOURIN_SESSION_COOKIE_IDLE_S",
    "TOURIN_SESSION_IDLE_S",
    "TOURIN_SESSION_REDIS_PREFIX",
    "TOURIN_SESSION_REDIS_URL",
    "TOURIN_SESSION_S",
    "TOURIN_SIGNALS_ACCEPT_ISSUER",
    "TOURIN_SIGNALS_ACCEPT_JWKS_URL",
    "TOURIN_SIGNALS_ISSUER",
    "TOURIN_SIGNALS_KEEP_S",
    "TOURIN_SIGNALS_PUSH_AUDIENCE",
    "TOURIN_SIGNALS_PUSH_TOKEN_FILE",
    "TOURIN_SIGNALS_PUSH_URL",
    "TOURIN_SIGNING_KEY",
    "TOURIN_SIMILARITY_MEMBER_EXPONENT",
    "TOURIN_SIMILARITY_NEIGHBOUR_EXPONENT",
    "TOURIN_SIMILARITY_SEED_EXPONENT",
    "TOURIN_STEP_UP",
    "TOURIN_TRACE_ACCEPT",
    "TOURIN_TRACE_BATCH_SPANS",
    "TOURIN_TRACE_EXPORT_TIMEOUT_MS",
    "TOURIN_TRACE_FLUSH_INTERVAL_MS",
    "TOURIN_TRACE_KEEP_FAILED",
    "TOURIN_TRACE_MEMORY_BYTES",
    "TOURIN_TRACE_MEMORY_SPANS",
    "TOURIN_TRACE_PROPAGATION",
    "TOURIN_TRACE_QUEUE_SPANS",
    "TOURIN_TRACE_RATIO",
    "TOURIN_TRACE_ROUTE",
    "TOURIN_TRACE_SLOW_MS",
    "TOURIN_TREND_FLOOR",
    "TOURIN_TREND_HALF_LIFE_MS",
    "TOURIN_TREND_MAX_AGE_S",
    "TOURIN_TREND_WINDOW_MS",
    "TOURIN_TRUSTED_PROXIES",
    "TOURIN_VERSION_LABEL",
    "TOURIN_VIEWS_REMEMBERED",
    "TOURIN_WEIGHT",
    "TOURIN_ZIPKIN_URL",
    "TOURIN_ZONE",
];

/// Variables of compose.yaml and of the test bed's tools.
const SURROUNDINGS: &[&str] = &[
    "TOURIN_AMQP_API_URL",
    "TOURIN_AMQP_CORE_URL",
    "TOURIN_AMQP_OPERATOR_URL",
    "TOURIN_AMQP_RECOMMENDATION_URL",
    "TOURIN_BIND",
    "TOURIN_BROWSER_PYTHON",
    "TOURIN_IMAGE",
    "TOURIN_MONGODB_PASSWORD",
    "TOURIN_MONGODB_RECOMMENDATION_URL",
    "TOURIN_MONGODB_ROOT_PASSWORD",
    "TOURIN_MYSQL_ADMIN_URL",
    "TOURIN_MYSQL_PASSWORD",
    "TOURIN_OPENAPI_TOOLS",
    "TOURIN_PORT",
    "TOURIN_RABBITMQ_CORE_PASSWORD",
    "TOURIN_RABBITMQ_OPERATOR_PASSWORD",
    "TOURIN_RABBITMQ_RECOMMENDATION_PASSWORD",
    "TOURIN_REDIS_CORE_PASSWORD",
    "TOURIN_REDIS_CORE_URL",
    "TOURIN_REDIS_GATEWAY_PASSWORD",
    "TOURIN_REDIS_GATEWAY_URL",
    "TOURIN_REDIS_RECOMMENDATION_PASSWORD",
    "TOURIN_REDIS_RECOMMENDATION_URL",
    "TOURIN_REDIS_REGISTRY_PASSWORD",
    "TOURIN_REDIS_REGISTRY_URL",
    "TOURIN_SCHEMATHESIS",
];

/// The prefixes of tests' and benchmarks' own variables.
const OTHERS: [&str; 3] = ["TOURIN_TESTBED_", "TOURIN_TEST_", "TOURIN_BENCH_"];

/// The least similarity, of 1, of a suggestion.
const LIKE: f64 = 0.7;
/// The most variables that are logged one by one.
const NAMED: usize = 20;

/// A variable with Tourin's prefix that no program reads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unknown {
    name: String,
    /// The suggested variable.
    nearest: Option<&'static str>,
}

/// Warns of each environment variable with Tourin's prefix that no program reads. Its value is not
/// logged: it may be a secret.
pub fn warn_of_unknown_variables() {
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let unknown = unknown(names.collect());
    for Unknown { name, nearest } in unknown.iter().take(NAMED) {
        match nearest {
            Some(nearest) => tracing::warn!(
                variable = name,
                "no program of Tourin reads this variable; is {nearest} meant?"
            ),
            None => tracing::warn!(variable = name, "no program of Tourin reads this variable"),
        }
    }
    if unknown.len() > NAMED {
        tracing::warn!(more = unknown.len() - NAMED, "variables that no program of Tourin reads");
    }
}

fn unknown(names: BTreeSet<String>) -> Vec<Unknown> {
    let known = || VARIABLES.iter().chain(SURROUNDINGS).copied();
    let is_known = |name: &str| {
        known().any(|known| known == name)
            || OTHERS.iter().any(|others| name.starts_with(others))
            || is_of_kubernetes(name, &names)
    };
    names
        .iter()
        .filter(|name| name.starts_with(PREFIX) && !is_known(name))
        .map(|name| Unknown { name: name.clone(), nearest: nearest(name, known()) })
        .collect()
}

/// Kubernetes sets variables in every pod for the services of its namespace: for a service
/// `tourin-gateway` `TOURIN_GATEWAY_SERVICE_HOST`, `TOURIN_GATEWAY_PORT` and more with these
/// prefixes.
fn is_of_kubernetes(name: &str, names: &BTreeSet<String>) -> bool {
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|part| {
        name.match_indices(part)
            .any(|(at, _)| names.contains(&format!("{}_SERVICE_HOST", &name[..at])))
    })
}

fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let likeness = |known: &str| {
        // The common prefix would make all of them similar.
        strsim::normalized_damerau_levenshtein(&name[PREFIX.len()..], &known[PREFIX.len()..])
    };
    known
        .map(|known| (likeness(known), known))
        .filter(|(like, _)| *like >= LIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<Unknown> {
        unknown(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_one_that_is_meant() {
        for (name, nearest) in [
            ("TOURIN_ACESS_TOKEN_S", Some("TOURIN_ACCESS_TOKEN_S")),
            ("TOURIN_CORE_ACCESS_TOKEN_S", Some("TOURIN_ACCESS_TOKEN_S")),
            ("TOURIN_LISTENS", Some("TOURIN_LISTEN")),
            ("TOURIN_NOTHING_LIKE_IT_AT_ALL", None),
            ("TOURIN_", None),
        ] {
            let expected = Unknown { name: name.to_owned(), nearest };
            assert_eq!(of(&[name, "PATH"]), [expected]);
        }
    }

    #[test]
    fn variables_of_other_programs_are_not_unknown() {
        for names in [
            &["TOURIN_MYSQL_URL", "TOURIN_GATEWAY_LISTEN", "TOURIN_PORT"][..],
            &["TOURIN_TESTBED_DRI", "TOURIN_AMQP_API_URL", "tourin_listen", "HOME"],
            &[
                "TOURIN_GATEWAY_SERVICE_HOST",
                "TOURIN_GATEWAY_SERVICE_PORT_HTTP",
                "TOURIN_GATEWAY_PORT",
                "TOURIN_GATEWAY_PORT_8080_TCP_ADDR",
            ],
        ] {
            assert_eq!(of(names), []);
        }
        assert_eq!(of(&["TOURIN_GATEWAY_PORT"]).len(), 1, "there is no such service");
    }

    #[test]
    fn the_list_is_in_order_and_has_each_once() {
        assert!(VARIABLES.is_sorted_by(|one, next| one < next));
    }
}
