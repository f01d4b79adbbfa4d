//! What a span is told about the call that it stands for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::Method;

use super::subject::Subject;

/// A text that a span keeps. What its owner shares is kept without a copy, which is for what is said
/// of every request.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(Source<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    Shared(&'a Arc<str>),
    Borrowed(&'a str),
}

impl<'a> Text<'a> {
    /// The text itself.
    pub fn as_str(self) -> &'a str {
        match self.0 {
            Source::Shared(text) => text,
            Source::Borrowed(text) => text,
        }
    }

    fn keep(self) -> Arc<str> {
        match self.0 {
            Source::Shared(text) => Arc::clone(text),
            Source::Borrowed(text) => text.into(),
        }
    }
}

impl<'a> From<&'a Arc<str>> for Text<'a> {
    fn from(text: &'a Arc<str>) -> Self {
        Self(Source::Shared(text))
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Source::Borrowed(text))
    }
}

/// A method's name, for spans and labels. One that HTTP does not know is a stranger's text and goes by
/// `_OTHER`.
pub fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// A request that came in.
#[derive(Debug, Clone)]
pub struct HttpRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The template of its route; `None` where it has none.
    pub route: Option<Text<'a>>,
    /// When it came, if that was before the span is made.
    pub started: Option<SystemTime>,
    /// Whether it joins a caller's trace but starts none: the mesh's own heartbeats and long polls.
    pub unwatched: bool,
}

impl<'a> HttpRequest<'a> {
    /// A request for `route` that has just come.
    pub fn new(method: &'a Method, route: Option<&'a str>) -> Self {
        Self { method, route: route.map(Text::from), started: None, unwatched: false }
    }
}

impl HttpRequest<'_> {
    pub(super) fn method_name(&self) -> &'static str {
        method_name(self.method)
    }

    pub(super) fn subject(&self) -> Subject {
        Subject::Request { method: self.method_name(), route: self.route.map(Text::keep) }
    }
}

/// A request that goes to another service.
#[derive(Debug, Clone)]
pub struct HttpCall<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The template of its route, without ids.
    pub route: Text<'a>,
    /// The called service's name in the mesh.
    pub service: Text<'a>,
    /// The called instance's id, where one was chosen.
    pub instance: Option<&'a str>,
    /// The called instance's address.
    pub address: Option<SocketAddr>,
    /// 0 at first, 1 when it is sent again, and so on.
    pub resend_count: u32,
}

impl HttpCall<'_> {
    pub(super) fn subject(&self) -> Subject {
        Subject::Call {
            method: method_name(self.method),
            route: self.route.keep(),
            service: self.service.keep(),
            instance: self.instance.map(Box::from),
            address: self.address,
            resend_count: self.resend_count,
        }
    }
}

/// A call to a database or a cache. Never the statement: it may hold a person's words.
#[derive(Debug, Clone)]
pub struct DbCall<'a> {
    /// OpenTelemetry's name of the engine: `mysql`, `mariadb`, `sqlite`, `redis`, `mongodb`.
    pub system: &'static str,
    /// What is done, as a fixed word or two: `select`, `zincrby`, `place bookmark`.
    pub operation: &'static str,
    /// The table, collection or kind of key.
    pub collection: Option<&'a str>,
    /// The database.
    pub namespace: Option<&'a str>,
    /// The server's address, where it is known.
    pub address: Option<SocketAddr>,
}

impl<'a> DbCall<'a> {
    /// A call with what every call has.
    pub fn new(system: &'static str, operation: &'static str, collection: &'a str) -> Self {
        Self { system, operation, collection: Some(collection), namespace: None, address: None }
    }

    pub(super) fn subject(&self) -> Subject {
        Subject::Db {
            system: self.system,
            operation: self.operation,
            collection: self.collection.map(Box::from),
            namespace: self.namespace.map(Box::from),
            address: self.address,
        }
    }
}

/// An event on its way.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// `rabbitmq`, or `tourin` for the bus within a process; the broker's name in Zipkin.
    pub system: &'static str,
    /// The exchange that it is sent to, or the queue that it was read from.
    pub destination: &'a str,
    /// The event's type.
    pub event_type: &'a str,
    /// The event's id.
    pub id: &'a str,
    /// Which delivery it is, from 1; 0 for one that is sent.
    pub attempt: u32,
    /// The broker's address, where it is known.
    pub address: Option<SocketAddr>,
}

impl Message<'_> {
    pub(super) fn subject(&self, operation: &'static str) -> Subject {
        Subject::Message {
            operation,
            system: self.system,
            destination: self.destination.into(),
            event_type: self.event_type.into(),
            id: self.id.into(),
            attempt: self.attempt,
            address: self.address,
        }
    }
}
