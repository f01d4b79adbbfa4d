//! Scenarios through a real gateway, with a real registry and services that answer as told.

// What cannot be unwrapped here fails its test, with its place.
#![allow(clippy::unwrap_used)]

mod harness;

mod authentication;
mod balancing;
mod hygiene;
mod lifecycle;
mod limits;
mod revocation_stream;
mod sites;
