//! Faults under the load of an audit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tourin::audit::gateways::{Call, Gateways, Reply};
use tourin::audit::ledger::SpotId;
use tourin::audit::members::{self, Member};
use tourin::audit::observation::{self, Observer};
use tourin::audit::report::Report;
use tourin::audit::{Audit, AuditSettings};
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::eventually_within;

use crate::mesh::{Mesh, MeshGuard, turn};

/// Requests per second. Two cores run the load, the servers and seven unoptimised services.
const RATE: u32 = 20;
/// The longest load. It ends earlier when the mesh has recovered from the fault.
const LOAD: Duration = Duration::from_secs(120);
/// How long effects may take after the load. Recovery has its own, shorter limit.
const SETTLE: Duration = Duration::from_secs(60);
/// How long the mesh may take to recover once the fault is over: 2 s to 8 s on two idle cores, longer on busy
/// ones. The times are printed; the limit is for a mesh that does not recover.
pub const RECOVERY: Duration = Duration::from_secs(30);
/// The most memory that a service may ever hold, in MiB: several times what it holds without a fault.
const MEMORY_MIB: u64 = 256;
/// The load before the fault, and after the recovery.
const AROUND: Duration = Duration::from_secs(3);

/// The mesh, and the audit that makes requests.
pub struct Scene<'a> {
    pub mesh: &'a mut Mesh,
    pub audit: &'a Audit,
}

/// Runs an audit and the `fault` at the same time. Checks that nothing was lost or doubled, and that memory
/// stayed bounded.
pub async fn audited(fault: impl AsyncFnOnce(&mut Scene<'_>)) -> Report {
    let mut turn: MeshGuard = turn().await;
    let load = AuditSettings { rate: RATE, duration: LOAD, members: 16, ..turn.audit_settings() };
    let settings = AuditSettings { settle: SETTLE, ..load };
    let audit = Audit::prepare(settings).await.expect("an audit can begin");
    turn.in_fault = true;
    let stop = Shutdown::new();
    let course = async {
        let mut scene = Scene { mesh: &mut turn, audit: &audit };
        scene.load_for(AROUND).await;
        fault(&mut scene).await;
        scene.load_for(AROUND).await;
        stop.begin();
    };
    let (driven, ()) = tokio::join!(audit.drive(&stop), course);
    driven.expect("every request is accounted for");
    let report = audit.conclude().await;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(report.comparison.trend_effects.acknowledged > 30, "too little was done:\n{report}");
    for service in turn.services() {
        let peak = service.peak_mib();
        println!("{}: at most {peak} MiB", service.name);
        assert!(peak < MEMORY_MIB, "{} held {peak} MiB", service.name);
    }
    turn.in_fault = false;
    report
}

impl Scene<'_> {
    /// Waits until the audit has made the requests of this time.
    pub async fn load_for(&self, time: Duration) {
        let more = time.as_millis() as u64 * u64::from(RATE) / 1_000;
        let until = self.audit.requests_made() + more;
        eventually_within(LOAD, "the load goes on until the fault is over", async || {
            self.audit.requests_made() >= until
        })
        .await;
    }

    /// Checks that every service is ready and a fresh bookmark has its effect, at every replica,
    /// within [`RECOVERY`] from now.
    #[track_caller]
    pub fn recovers(&self) -> impl Future<Output = ()> + '_ {
        let start = Instant::now();
        let caller = std::panic::Location::caller();
        async move {
            self.mesh.wait_until_ready(RECOVERY).await;
            let ready = start.elapsed();
            let probe = Probe::new(self).await;
            let (member, spot) = probe.bookmark().await;
            let bookmarked = start.elapsed();
            let mut missing = None;
            while let Err(reason) = probe.effect(&member, spot).await
                && start.elapsed() < RECOVERY
            {
                missing = Some((start.elapsed(), reason));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let effect = start.elapsed();
            let course = format!("ready after {ready:?}, bookmarked after {bookmarked:?}");
            println!("{course}, effect after {effect:?}");
            assert!(
                effect < RECOVERY,
                "{caller}: {course}, no effect after {effect:?}; last seen: {missing:?}; core's last words:\n{}",
                self.mesh.core.last_words()
            );
        }
    }
}

/// Requests beside those of the audit, at spots that the audit does not watch.
pub struct Probe {
    pub gateways: Gateways,
    pub observer: Observer,
    /// Spots that the audit does not watch.
    pub spots: Vec<SpotId>,
    audit_spots: usize,
}

impl Probe {
    pub async fn new(scene: &Scene<'_>) -> Self {
        let settings = scene.mesh.audit_settings();
        let timeout = Duration::from_secs(5);
        let gateways = Gateways::new(&settings.gateways, 20, timeout).unwrap();
        let observer = Observer::new(&settings.mesh, None).await.unwrap();
        let watched: BTreeSet<SpotId> = scene.audit.watched().iter().copied().collect();
        let all = observation::catalogue(&gateways, 1_000).await.expect("a catalogue");
        let spots = all.into_iter().filter(|spot| !watched.contains(spot)).collect();
        Self { gateways, observer, spots, audit_spots: watched.len() }
    }

    /// A new member.
    pub async fn member(&self) -> Member {
        members::sign_up(&self.gateways, 1).await.expect("a member").remove(0)
    }

    /// A new member bookmarks a spot.
    async fn bookmark(&self) -> (String, SpotId) {
        let member = self.member().await;
        let spot = *self.spots.first().unwrap_or_else(|| {
            panic!("the audit watches all {} spots of the catalogue", self.audit_spots)
        });
        let body = serde_json::json!({"tourSpotId": spot.to_string()});
        let call = Call::post(format!("/api/users/{}/bookmarks", member.id), body);
        let token = member.token(&self.gateways).await.expect("a session");
        let call = Call { token: Some(token), idempotent: true, ..call };
        match self.gateways.call(&call).await {
            Reply::Response { status, .. } if status == 201 => {}
            other => panic!("a bookmark after the fault: {other:?}"),
        }
        (member.id, spot)
    }

    /// Whether every replica knows the bookmark.
    async fn effect(&self, member: &str, spot: SpotId) -> Result<(), String> {
        let instances = self.observer.instances().await.map_err(|error| format!("{error:#}"))?;
        if instances.len() != crate::mesh::REPLICAS {
            return Err(format!("{} replicas are registered", instances.len()));
        }
        for (name, address) in instances {
            let members = [member.to_owned()];
            let effects = self.observer.effects(address, &[spot], &members).await;
            let effects = effects.map_err(|error| format!("{name}: {error:#}"))?;
            if effects.histories[member].bookmarked != [spot] {
                return Err(format!("{name}: {:?}", effects.histories[member]));
            }
        }
        Ok(())
    }
}
