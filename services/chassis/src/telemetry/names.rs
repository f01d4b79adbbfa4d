//! The attribute names of Tourin's spans, mostly OpenTelemetry's semantic conventions.

/// The span's service. Set on each span: one process may run several services.
pub const SERVICE: &str = "service.name";
/// `ADDRESS:PORT` that the span's service listens on.
pub const LOCAL: &str = "tourin.local";
/// Set to export a span's trace although it was not sampled.
pub const KEEP: &str = "tourin.keep";
/// Set at the start of a span, by code that uses only OpenTelemetry's API, that probably repeats
/// earlier ones. It is exported only with [`KEEP`].
pub const REPEAT: &str = "tourin.repeat";
/// Why spans that were not sampled were exported: `failed`, `slow` or `kept`.
pub const KEPT_FOR: &str = "tourin.kept_for";
/// The called service's name in the mesh, or the engine's: Zipkin's remote endpoint.
pub const PEER_SERVICE: &str = "peer.service";
/// Host or IP address of the called server.
pub const SERVER_ADDRESS: &str = "server.address";
/// Its port.
pub const SERVER_PORT: &str = "server.port";
/// The request's method.
pub const HTTP_METHOD: &str = "http.request.method";
/// The route's template.
pub const HTTP_ROUTE: &str = "http.route";
/// The response's status.
pub const HTTP_STATUS: &str = "http.response.status_code";
/// 1 for the first retry.
pub const HTTP_RESEND: &str = "http.request.resend_count";
/// `mysql`, `sqlite`, `redis`, `mongodb`.
pub const DB_SYSTEM: &str = "db.system.name";
/// The operation, such as `select` or `zincrby`; never the statement.
pub const DB_OPERATION: &str = "db.operation.name";
/// The table or collection.
pub const DB_COLLECTION: &str = "db.collection.name";
/// The database.
pub const DB_NAMESPACE: &str = "db.namespace";
/// `rabbitmq`, or `tourin` for the bus within a process.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// The exchange of a publish, or the queue of a consumer.
pub const MESSAGING_DESTINATION: &str = "messaging.destination.name";
/// `send`, `process` and so on.
pub const MESSAGING_OPERATION: &str = "messaging.operation.name";
/// The event's id.
pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
/// The queue of a consumer.
pub const MESSAGING_CONSUMER: &str = "messaging.consumer.group.name";
/// The event's type.
pub const MESSAGING_ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
/// Events in one batch.
pub const MESSAGING_BATCH: &str = "messaging.batch.message_count";
/// The attempt at the event, from 1. Waits for a dependency do not count.
pub const ATTEMPT: &str = "tourin.attempt";
/// How often the event had waited for a dependency that was down before this delivery, as far as
/// this process knows.
pub const WAITS: &str = "tourin.waits";
/// How old an event was when this attempt began, in milliseconds.
pub const AGE: &str = "tourin.age_ms";
/// The outcome of the work: `applied`, `duplicate`, `dead_lettered` and so on.
pub const OUTCOME: &str = "tourin.outcome";
/// The called instance.
pub const INSTANCE: &str = "tourin.instance";
/// Why a request was answered by a substitute for its response.
pub const DEGRADED: &str = "tourin.degraded";
/// The class of failure.
pub const ERROR_TYPE: &str = "error.type";

/// All names that leave the process as tags. Check what a new name may hold before adding it.
pub const EXPORTED: &[&str] = &[
    KEPT_FOR,
    SERVER_ADDRESS,
    SERVER_PORT,
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    HTTP_RESEND,
    DB_SYSTEM,
    DB_OPERATION,
    DB_COLLECTION,
    DB_NAMESPACE,
    MESSAGING_SYSTEM,
    MESSAGING_DESTINATION,
    MESSAGING_OPERATION,
    MESSAGING_MESSAGE_ID,
    MESSAGING_CONSUMER,
    MESSAGING_ROUTING_KEY,
    MESSAGING_BATCH,
    ATTEMPT,
    WAITS,
    AGE,
    OUTCOME,
    INSTANCE,
    DEGRADED,
    ERROR_TYPE,
];
