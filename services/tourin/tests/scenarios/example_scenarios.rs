//! The examples in `deploy/examples`, as their reader runs them.

use std::process::Command;

use crate::process::program;

#[test]
fn an_old_application_is_taken_over_without_a_failed_request() {
    let script = "../../deploy/examples/strangler/run.sh";
    let gateway = program("gateway");
    let programs = gateway.parent().expect("a folder with the programs");
    let output = Command::new(script).arg(programs).output().expect("it runs");
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
}
