//! `tourin`: the all-in-one and the operator's command line.

use std::process::ExitCode;

/// All of it is in the library: a program that awaits the library's functions compiles them again.
fn main() -> ExitCode {
    tourin::cli::main()
}
