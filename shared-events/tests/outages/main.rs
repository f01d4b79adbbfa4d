//! The bus while its broker is killed and restarted: each test has a broker of its own, for it takes it away.

mod restart;
