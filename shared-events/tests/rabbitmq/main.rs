//! The bus on RabbitMQ, on a real broker.

mod bed;
mod bounds;
mod broker;
mod contract;
mod loss;
mod sharing;
mod tls;
