//! Scenarios through a real gateway and registry, with fake services.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod harness;

mod authentication;
mod balancing;
mod hygiene;
mod landing;
mod languages;
mod lifecycle;
mod limits;
mod revocation_stream;
mod sites;
mod sliding;
mod tracing;
mod versions;
