//! Scenarios through a real gateway, with a real registry and services that answer as told.

// What cannot be unwrapped here fails its test, with its place.
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
