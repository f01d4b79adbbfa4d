//! What a span stands for, kept as it was said. Names and attributes are made of it only when the
//! span is exported: most spans are of requests that nobody sampled and that went well.

use std::borrow::Cow;
use std::net::SocketAddr;

use opentelemetry::KeyValue;

use super::names;

/// What a span stands for.
#[derive(Debug)]
pub(super) enum Subject {
    Work(&'static str),
    Request {
        method: &'static str,
        route: Option<Box<str>>,
    },
    Call {
        method: &'static str,
        route: Box<str>,
        service: Box<str>,
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
    pub fn name(&self) -> Cow<'static, str> {
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

    /// Adds what is known from the start to `attributes`.
    pub fn describe(self, attributes: &mut Vec<KeyValue>) {
        let mut put = Put(attributes);
        match self {
            Self::Work(_) => {}
            Self::Request { method, route } => {
                put.word(names::HTTP_METHOD, method);
                put.text(names::HTTP_ROUTE, route);
            }
            Self::Call { method, route, service, address, resend_count } => {
                put.word(names::HTTP_METHOD, method);
                put.text(names::HTTP_ROUTE, Some(route));
                put.text(names::PEER_SERVICE, Some(service));
                put.address(address);
                put.count(names::HTTP_RESEND, resend_count);
            }
            Self::Db { system, operation, collection, namespace, address } => {
                put.word(names::DB_SYSTEM, system);
                put.word(names::DB_OPERATION, operation);
                put.word(names::PEER_SERVICE, system);
                put.text(names::DB_COLLECTION, collection);
                put.text(names::DB_NAMESPACE, namespace);
                put.address(address);
            }
            Self::Message { operation, system, destination, event_type, id, attempt, address } => {
                put.word(names::MESSAGING_SYSTEM, system);
                put.word(names::MESSAGING_OPERATION, operation);
                put.text(names::MESSAGING_DESTINATION, Some(destination));
                put.text(names::MESSAGING_ROUTING_KEY, Some(event_type));
                put.text(names::MESSAGING_MESSAGE_ID, Some(id));
                put.word(names::PEER_SERVICE, system);
                put.count(names::ATTEMPT, attempt);
                put.address(address);
            }
        }
    }
}

struct Put<'a>(&'a mut Vec<KeyValue>);

impl Put<'_> {
    fn word(&mut self, name: &'static str, value: &'static str) {
        self.0.push(KeyValue::new(name, value));
    }

    fn text(&mut self, name: &'static str, value: Option<Box<str>>) {
        self.0.extend(value.map(|value| KeyValue::new(name, String::from(value))));
    }

    /// None is not worth a tag.
    fn count(&mut self, name: &'static str, count: u32) {
        if count > 0 {
            self.0.push(KeyValue::new(name, i64::from(count)));
        }
    }

    fn address(&mut self, address: Option<SocketAddr>) {
        if let Some(address) = address {
            self.0.push(KeyValue::new(names::SERVER_ADDRESS, address.ip().to_string()));
            self.0.push(KeyValue::new(names::SERVER_PORT, i64::from(address.port())));
        }
    }
}
