//! What a span stands for, kept as it was said. A name and tags are made of it only when the span is
//! exported: most spans are of requests that nobody sampled and that went well.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use super::finished::Finished;
use super::names;

/// What a span stands for.
pub(super) enum Subject {
    Work(&'static str),
    Request {
        method: &'static str,
        route: Option<Arc<str>>,
    },
    Call {
        method: &'static str,
        route: Arc<str>,
        service: Arc<str>,
        instance: Option<Box<str>>,
        address: Option<SocketAddr>,
        resend_count: u32,
    },
    Db {
        system: &'static str,
        operation: &'static str,
        collection: Option<Box<str>>,
        namespace: Option<Box<str>>,
        address: Option<SocketAddr>,
    },
    Message {
        operation: &'static str,
        system: &'static str,
        destination: Box<str>,
        event_type: Box<str>,
        id: Box<str>,
        attempt: u32,
        address: Option<SocketAddr>,
    },
}

impl Subject {
    /// The span's name.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Work(name) => Cow::Borrowed(name),
            Self::Request { method, route: None } => Cow::Borrowed(method),
            Self::Request { method, route: Some(route) } | Self::Call { method, route, .. } => {
                format!("{method} {route}").into()
            }
            Self::Db { operation, collection: None, .. } => Cow::Borrowed(operation),
            Self::Db { operation, collection: Some(collection), .. } => {
                format!("{operation} {collection}").into()
            }
            Self::Message { operation, destination, .. } => {
                format!("{operation} {destination}").into()
            }
        }
    }

    /// Tells `span` what is known from the start.
    pub fn describe<'a>(&'a self, span: &mut Finished<'a>) {
        match self {
            Self::Work(_) => {}
            Self::Request { method, route } => {
                span.word(names::HTTP_METHOD, method);
                span.text(names::HTTP_ROUTE, route.as_deref());
            }
            Self::Call { method, route, service, instance, address, resend_count } => {
                span.peer = Some(Cow::Borrowed(service));
                span.peer_address(*address);
                span.word(names::HTTP_METHOD, method);
                span.word(names::HTTP_ROUTE, route);
                span.text(names::INSTANCE, instance.as_deref());
                span.count(names::HTTP_RESEND, *resend_count);
            }
            Self::Db { system, operation, collection, namespace, address } => {
                span.peer = Some(Cow::Borrowed(system));
                span.peer_address(*address);
                span.word(names::DB_SYSTEM, system);
                span.word(names::DB_OPERATION, operation);
                span.text(names::DB_COLLECTION, collection.as_deref());
                span.text(names::DB_NAMESPACE, namespace.as_deref());
            }
            Self::Message { operation, system, destination, event_type, id, attempt, address } => {
                span.peer = Some(Cow::Borrowed(system));
                span.peer_address(*address);
                span.word(names::MESSAGING_SYSTEM, system);
                span.word(names::MESSAGING_OPERATION, operation);
                span.word(names::MESSAGING_DESTINATION, destination);
                span.word(names::MESSAGING_ROUTING_KEY, event_type);
                span.word(names::MESSAGING_MESSAGE_ID, id);
                span.count(names::ATTEMPT, *attempt);
            }
        }
    }
}
