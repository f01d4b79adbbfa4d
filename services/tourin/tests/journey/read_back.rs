//! A trace by Zipkin's API, and the checks of a journey's trace.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};
use tourin_testbed::eventually;

use crate::world::{Member, PASSWORD, World};

/// A new member's bookmark, up to its effect in the trend.
pub struct Journey {
    pub member: Member,
    /// The trace of the bookmark, by the response's `traceresponse`.
    pub trace: String,
}

impl Journey {
    /// Makes the requests through the gateway.
    pub async fn play(world: &World) -> Self {
        let member = world.member("traced001").await;
        let spot = world.spots(1).await.remove(0);
        let path = format!("/api/users/{}/bookmarks", member.id);
        let answer = world.post_as(&member, &path, json!({"tourSpotId": spot})).await;
        let traceresponse = answer.header("traceresponse").to_owned();
        let trace = traceresponse.split('-').nth(1).expect("a trace id").to_owned();
        assert_eq!(answer.header("x-request-id"), trace, "one id to ask for");
        answer.expect(201);
        eventually("the bookmark is in the trend", || async {
            let trend = world.request(Method::GET, "/api/recommendations/trend?k=5");
            let trend = world.send(trend.bearer_auth(&member.access)).await.expect(200);
            if trend.to_string().contains(&format!("\"{spot}\"")) { Ok(()) } else { Err(trend) }
        })
        .await;
        Self { member, trace }
    }
}

/// A server of Zipkin's read API.
pub struct Zipkin {
    url: String,
    http: reqwest::Client,
}

/// A span.
#[derive(Debug, Clone)]
pub struct Span(Value);

impl Span {
    pub fn id(&self) -> &str {
        self.0["id"].as_str().expect("an id")
    }
    pub fn parent(&self) -> Option<&str> {
        self.0["parentId"].as_str()
    }
    pub fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or("")
    }
    pub fn service(&self) -> &str {
        self.0["localEndpoint"]["serviceName"].as_str().unwrap_or("")
    }
    pub fn remote(&self) -> &str {
        self.0["remoteEndpoint"]["serviceName"].as_str().unwrap_or("")
    }
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.0["tags"][name].as_str()
    }
    pub fn start_us(&self) -> u64 {
        self.0["timestamp"].as_u64().expect("a start")
    }
    pub fn duration_us(&self) -> u64 {
        self.0["duration"].as_u64().expect("a duration")
    }
}

impl Zipkin {
    pub fn at(url: &str) -> Self {
        let http = tourin_chassis::http_client::client(None).unwrap();
        Self { url: url.trim_end_matches('/').to_owned(), http }
    }

    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.http.get(format!("{}/api/v2/{path}", self.url)).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("{path}: {}", answer.status()));
        }
        answer.json().await.map_err(|error| error.to_string())
    }

    /// The trace, once `complete` accepts it.
    pub async fn trace(&self, id: &str, complete: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        eventually("the whole trace", || async {
            let found = self.get(&format!("trace/{id}")).await?;
            let spans: Vec<Span> = found.as_array().unwrap().iter().cloned().map(Span).collect();
            if complete(&spans) { Ok(spans) } else { Err(format!("{spans:#?}")) }
        })
        .await
    }

    /// The calls between services in the traces of the last hour: caller and called.
    pub async fn links(&self) -> BTreeSet<(String, String)> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let path = format!("dependencies?endTs={}&lookback=3600000", now.as_millis());
        let links = self.get(&path).await.expect("dependencies");
        let end = |link: &Value, name: &str| link[name].as_str().unwrap_or("").to_owned();
        let links = links.as_array().unwrap().iter();
        links.map(|link| (end(link, "parent"), end(link, "child"))).collect()
    }
}

/// The servers that a mesh's spans name.
pub struct Engines<'a> {
    /// The broker's name.
    pub broker: &'a str,
    /// The database that core's changes are in.
    pub of_core: &'a str,
    /// The stores of the trend and of the histories.
    pub of_recommendation: &'a [&'a str],
}

/// Checks the bookmark's trace.
pub async fn check(zipkin: &Zipkin, journey: &Journey, engines: &Engines<'_>) {
    let consumed = |spans: &[Span]| {
        let stores = engines.of_recommendation.iter().all(|engine| {
            spans.iter().any(|span| span.service() == "recommendation" && span.remote() == *engine)
        });
        stores && spans.iter().any(|span| span.kind() == "CONSUMER")
    };
    let is_complete = |spans: &[Span]| {
        let ids: BTreeSet<_> = spans.iter().map(Span::id).collect();
        consumed(spans) && spans.iter().all(|span| span.parent().is_none_or(|id| ids.contains(id)))
    };
    // Spans arrive in any order, so this waits until every parent is there.
    let spans = zipkin.trace(&journey.trace, is_complete).await;
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (span.id(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "each span once: {spans:#?}");
    let parent_of = |span: &Span| span.parent().map(|id| by_id[id]);

    for span in &spans {
        assert_eq!(span.0["traceId"], journey.trace);
        assert!(span.tag("error").is_none(), "nothing failed: {span:#?}");
        assert!(span.duration_us() > 0);
        if let Some(parent) = parent_of(span) {
            assert!(span.start_us() >= parent.start_us(), "{span:#?} before {parent:#?}");
        }
    }
    let services: BTreeSet<_> = spans.iter().map(Span::service).collect();
    assert_eq!(services, BTreeSet::from(["gateway", "core", "recommendation"]), "{spans:#?}");
    let roots: Vec<_> = spans.iter().filter(|span| span.parent().is_none()).collect();
    let [root] = roots[..] else { panic!("one root: {roots:#?}") };
    assert_eq!((root.service(), root.kind()), ("gateway", "SERVER"));
    assert_eq!(root.tag("http.route"), Some("/api/users/{userId}/bookmarks"));
    assert_eq!(root.tag("http.response.status_code"), Some("201"));

    let one = |service: &str, kind: &str, remote: &str| {
        let found: Vec<_> = spans
            .iter()
            .filter(|span| (span.service(), span.kind(), span.remote()) == (service, kind, remote))
            .collect();
        assert!(!found.is_empty(), "no {kind} of {service} to {remote} in {spans:#?}");
        found[0]
    };
    let call = one("gateway", "CLIENT", "core");
    assert_eq!(call.parent(), Some(root.id()));
    let served = spans.iter().find(|span| span.service() == "core" && span.kind() == "SERVER");
    assert_eq!(served.expect("core's part").parent(), Some(call.id()));
    one("core", "CLIENT", engines.of_core);
    let sent = one("core", "PRODUCER", engines.broker);
    let consumers: Vec<_> = spans.iter().filter(|span| span.kind() == "CONSUMER").collect();
    for consumer in &consumers {
        assert_eq!((consumer.service(), consumer.remote()), ("recommendation", engines.broker));
        assert_eq!(consumer.parent(), Some(sent.id()), "{consumer:#?}");
        assert_eq!(consumer.tag("messaging.message.id"), sent.tag("messaging.message.id"));
        assert_eq!(consumer.tag("tourin.outcome"), Some("applied"), "{consumer:#?}");
        // It ends after the effect.
        let end = consumer.start_us() + consumer.duration_us();
        let inside = spans.iter().filter(|span| span.parent() == Some(consumer.id()));
        let last = inside.map(|span| span.start_us() + span.duration_us()).max();
        assert!(last.is_none_or(|last| last <= end + 1_000), "{consumer:#?}");
    }
    for engine in engines.of_recommendation {
        one("recommendation", "CLIENT", engine);
    }

    let text = format!("{spans:?}");
    for private in [&*journey.member.id, PASSWORD, &*journey.member.access, "@example.com"] {
        assert!(!text.contains(private), "{private} is in a span");
    }
    let mut missing = vec![
        ("gateway", "core"),
        ("core", engines.of_core),
        ("core", engines.broker),
        (engines.broker, "recommendation"),
    ];
    missing.extend(engines.of_recommendation.iter().map(|engine| ("recommendation", *engine)));
    let links = zipkin.links().await;
    missing.retain(|(from, to)| !links.contains(&((*from).to_owned(), (*to).to_owned())));
    assert!(missing.is_empty(), "no {missing:?} in {links:?}");
    let names = zipkin.get("services").await.expect("services").to_string();
    for service in ["gateway", "core", "recommendation"] {
        assert!(names.contains(&format!("\"{service}\"")), "{names}");
    }
}
