//! Replicas that come and go under load, and what `tourin ctl` says of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::Method;
use tokio::task::JoinSet;
use tourin_testbed::eventually;

use crate::process::Process;
use crate::separate_process_scenarios::Services;
use crate::world::World;

const CALLERS: usize = 8;

/// Callers that read one path until they are stopped. Every answer must be 200.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: JoinSet<()>,
}

impl Load {
    fn start(world: &World, path: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (world, path) = (World::at(world.url.clone()), path.to_owned());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // Not by what tries again.
                    let answer = world.request(Method::GET, &path).send().await.unwrap();
                    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { stop, answered, callers }
    }

    /// Waits until as many more requests have been answered.
    async fn goes_on(&mut self, more: u64) {
        let start = self.answered.load(Ordering::Relaxed);
        eventually("requests are answered", || async {
            let done = self.answered.load(Ordering::Relaxed) - start;
            if done >= more || self.callers.is_empty() { Ok(()) } else { Err(done) }
        })
        .await;
    }

    /// How many requests were answered, all of them with 200.
    async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("no request failed");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

/// The cells of the line of an instance.
fn cells(table: &str, id: &str) -> Vec<String> {
    let line = table.lines().find(|line| line.split_whitespace().any(|word| word == id));
    let line = line.unwrap_or_else(|| panic!("no {id} in {table}"));
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

/// Scales from one replica to three and back to one while callers read, and looks at the report.
async fn scale(world: &World, services: &mut Services, in_the_middle: impl FnOnce(&Services)) {
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/similar");
    eventually("the call is answered", || async {
        let answer = world.get(&path).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    let mut load = Load::start(world, &path);
    load.goes_on(100).await;
    services.add_recommendation(2);
    services.add_recommendation(3);
    services.wait_for(3).await;
    load.goes_on(300).await;
    in_the_middle(services);
    services.stop_recommendation(0).await;
    load.goes_on(100).await;
    services.stop_recommendation(0).await;
    load.goes_on(100).await;
    let answered = load.stop().await;

    let report = services.ctl(&["scale-report", "recommendation"]);
    let mut served = 0;
    for id in ["recommendation-1", "recommendation-2"] {
        // AT, SERVICE, ID, HOW, SERVED, ERRORS, SLOWEST ACK, DRAIN
        let cells = cells(&report, id);
        assert_eq!((&*cells[3], &*cells[5]), ("LEFT", "0"), "{report}");
        served += cells[4].parse::<u64>().unwrap();
        assert!(cells[6].contains(" ms gateway-"), "the gateway acknowledged: {report}");
        assert!(cells[7].ends_with(" ms"), "{report}");
    }
    assert!(served > 0 && served < answered, "{served} of {answered}: {report}");
    assert!(report.contains("2 departures, 0 of them by an ended lease"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_three_to_one_under_load_costs_no_request_and_leaves_a_receipt() {
    let (world, mut services) = Services::start(1).await;
    scale(&world, &mut services, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_registries_is_killed_in_the_middle_of_scaling_and_nobody_notices() {
    let (world, mut services) = Services::start_with_two_registries(1).await;
    scale(&world, &mut services, Services::kill_registry).await;
    // The other one goes on with leases, too.
    let listed = services.ctl(&["instances", "recommendation"]);
    assert_eq!(&cells(&listed, "recommendation-3")[2], "UP", "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_drains_weighs_and_enables_instances() {
    let (world, services) = Services::start(2).await;
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/similar");
    let listed = services.ctl(&["instances"]);
    for id in ["recommendation-1", "recommendation-2"] {
        assert_eq!(&cells(&listed, id)[2], "UP", "{listed}");
    }
    let load = Load::start(&world, &path);
    let drained = services.ctl(&["drain", "recommendation", "recommendation-1"]);
    assert!(drained.contains("OUT_OF_SERVICE  acknowledged by 1 gateways"), "{drained}");
    let listed = services.ctl(&["instances", "recommendation"]);
    assert_eq!(&cells(&listed, "recommendation-1")[2], "OUT_OF_SERVICE", "{listed}");
    assert_eq!(&cells(&listed, "recommendation-2")[2], "UP", "{listed}");

    let weighed = services.ctl(&["weights", "recommendation", "recommendation-2=250"]);
    assert_eq!(&cells(&weighed, "recommendation-2")[1], "250", "{weighed}");
    let weighed = services.ctl(&["weights", "recommendation", "recommendation-2=own"]);
    assert_eq!(&cells(&weighed, "recommendation-2")[1], "100", "{weighed}");

    let enabled = services.ctl(&["enable", "recommendation", "recommendation-1"]);
    assert!(enabled.contains("enabled  acknowledged by 1 gateways"), "{enabled}");
    assert!(load.stop().await > 0);

    let unknown = services.ctl_command(&["drain", "recommendation", "nobody"]).output().unwrap();
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(error.contains("knows no instance nobody of recommendation"), "{error}");

    // A watch shows what is there, and then what happens.
    let watching = Process::start(services.ctl_command(&["watch", "recommendation"]));
    watching.wait_for_line("recommendation/recommendation-2  UP");
    services.ctl(&["drain", "recommendation", "recommendation-2"]);
    watching.wait_for_line("recommendation/recommendation-2  OUT_OF_SERVICE");
    services.ctl(&["enable", "recommendation", "recommendation-2"]);
    watching.wait_for_line("recommendation/recommendation-2  UP");
}
