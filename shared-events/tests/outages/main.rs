//! The bus while its broker is killed and restarted. Each test has its own broker, because it stops it.

mod restart;
