//! Health checks: calls of `/healthz` at instances, over mTLS.
//!
//! Real calls say more of an instance than a health check, so only these are checked:
//! - an instance that has answered no call for an interval, such as one that gets none;
//! - one that has calls in flight and answers nothing for a while, and one whose call has failed: at once;
//! - one that is ejected, at the end of its time, and each second if it is unreachable.
//!
//! A status below 500 passes. A status says nothing about who may call; a refusal is an answer as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::balance::{Member, ServicePool};
use crate::mesh_client::MeshClient;
use crate::outliers::{HealthCheckSettings, outliers};
use crate::upstreams::Upstreams;

/// How often it is looked for instances to check. An instance that is suspected is checked at once.
const TICK: Duration = Duration::from_millis(100);
/// Health checks at once.
const MAX_CHECKS: usize = 64;

/// A running health check.
struct Checked {
    member: Arc<Member>,
    began: Instant,
    passed: bool,
}

/// Checks instances and ends ejections.
pub struct HealthChecks {
    upstreams: Arc<Upstreams>,
    /// `None` if instances cannot be checked; ejections then end with their time.
    mesh: Option<MeshClient>,
    settings: HealthCheckSettings,
}

impl HealthChecks {
    /// Checks for the instances of `upstreams`.
    pub fn new(
        upstreams: Arc<Upstreams>,
        mesh: Option<MeshClient>,
        settings: HealthCheckSettings,
    ) -> Self {
        Self { upstreams, mesh, settings }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut running = JoinSet::new();
        let mut judged = Instant::now();
        let mut turn = 0;
        loop {
            let mut pools = self.upstreams.pools();
            // Another service is first each time, so that the frozen instances of one leave checks for the others.
            turn = (turn + 1) % pools.len().max(1);
            pools.rotate_left(turn);
            let now = Instant::now();
            if now.duration_since(judged) >= self.upstreams.outliers().interval() {
                judged = now;
                pools.iter().for_each(|pool| self.judge(pool, now));
            }
            for pool in &pools {
                self.check(pool, &mut running, now);
                pool.recount();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Some(Ok(checked)) = running.join_next() => self.end(checked),
                () = self.upstreams.suspected() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn judge(&self, pool: &ServicePool, now: Instant) {
        let members = pool.members();
        let samples: Vec<_> = members.iter().map(|one| one.health.take_sample(now)).collect();
        for (index, reason) in outliers(&samples, self.upstreams.outliers()) {
            members[index].health.eject(reason, now);
        }
    }

    fn check(&self, pool: &ServicePool, running: &mut JoinSet<Checked>, now: Instant) {
        for member in pool.members() {
            let Some(mesh) = &self.mesh else {
                member.health.end_ejection(now);
                continue;
            };
            if running.len() >= MAX_CHECKS {
                return;
            }
            if member.health.check_due(&self.settings, now) {
                let (mesh, path) = (mesh.clone(), self.settings.health_check_path.clone());
                let limit = Duration::from_millis(self.settings.health_check_timeout_ms);
                running.spawn(async move {
                    let began = Instant::now();
                    let status = mesh.status(&member.instance, &path, limit).await;
                    let passed = status.is_ok_and(|status| !status.is_server_error());
                    Checked { member, began, passed }
                });
            }
        }
    }

    fn end(&self, checked: Checked) {
        let Checked { member, began, passed } = checked;
        member.health.checked(passed, &self.settings, began, Instant::now());
    }
}
