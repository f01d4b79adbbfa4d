//! An audit of a mesh with a slow store.

use std::time::Duration;

use tourin::audit::{Audit, AuditSettings};
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::shutdown::Shutdown;

use crate::backends::Backends;
use crate::world::access;

/// Histories are written to MongoDB slowly. Events that are still at the broker when effects are due are
/// late, and the audit waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn effects_delayed_by_a_slow_store_are_late_and_not_missing() {
    let mut settings = UpSettings::ephemeral();
    let _backends = Backends::create(&mut settings).await;
    let way = Backends::mongodb_by_proxy(&mut settings).await;
    let mesh = Mesh::start(settings, Shutdown::new()).await.expect("the mesh starts");
    let settle = Duration::from_secs(2);
    let audit = AuditSettings {
        duration: Duration::from_secs(3),
        rate: 60,
        members: 8,
        settle,
        max_wait: Duration::from_secs(120),
        ..AuditSettings::new(mesh.url(), access(&mesh))
    };
    let audit = Audit::prepare(audit).await.expect("an audit can begin");
    way.delay(Duration::from_millis(700));
    audit.drive(&Shutdown::new()).await.unwrap();
    let mut progress = audit.progress();
    let mend = async {
        let overdue = *progress.wait_for(|now| now.is_overdue).await.unwrap();
        way.delay(Duration::ZERO);
        overdue
    };
    let (report, overdue) = tokio::join!(audit.conclude(), mend);
    assert!(overdue.backlog.is_some_and(|backlog| backlog.queues > 0), "{overdue:?}");
    assert!(report.is_clean(), "{report}");
    assert!(report.late_by.is_some_and(|late_by| late_by >= settle), "{report}");
    assert!(report.comparison.replica_entries.late > 0, "{report}");
    mesh.stop().await.unwrap();
}
