//! The bus on RabbitMQ, on a real broker.

mod bed;
mod bounds;
mod broker;
mod contract;
mod loss;
mod sharing;
#[path = "../spans/mod.rs"]
mod spans;
mod tls;
mod trace;
mod users;
