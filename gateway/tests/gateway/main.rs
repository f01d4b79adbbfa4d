//! Scenarios through a real gateway and registry, with fake services.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod harness;

mod attacks;
mod authentication;
mod balancing;
mod caching;
mod compression;
mod failing_instances;
mod handover;
mod http2;
mod hygiene;
mod landing;
mod languages;
mod lifecycle;
mod limits;
mod operators;
mod pipelining;
mod proxy_protocol;
mod rate_limits;
mod redis_user;
mod reload;
mod resilience;
mod revocation_stream;
mod sites;
mod sliding;
mod smuggling;
mod steering;
mod streaming;
mod streams;
mod tls;
mod tracing;
mod versions;
