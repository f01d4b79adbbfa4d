//! The same calls, in any order, do the same in each store.

use std::fmt::Debug;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tokio::runtime::Runtime;
use tourin_registry_api::Status;
use tourin_registry_api::wire::{LeaveRequest, OverrideRequest};

use super::watchers::{join, sessions, state};
use super::*;
use crate::domain::{Session, Sessions, Since};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

const SERVICES: [&str; 2] = ["core", "gateway"];

#[derive(Clone, Debug)]
enum Step {
    Register {
        of: (u8, u8),
        port: u16,
        weight: Option<u8>,
        drains: bool,
    },
    Renew((u8, u8)),
    Drain((u8, u8)),
    Deregister {
        of: (u8, u8),
        says: bool,
    },
    Override {
        of: (u8, u8),
        request: OverrideRequest,
    },
    EndProtection(u8),
    Join(u8),
    /// The end of a session of this watcher, of which there may be a newer one.
    Leave {
        watcher: u8,
        age: usize,
    },
    Acknowledge {
        watcher: u8,
        back: u64,
    },
    StopWaiting {
        back: u64,
    },
    UseToken {
        token: u8,
        request: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let of = || (0..2u8, 0..4u8);
    let request = (any::<Option<bool>>(), proptest::option::of(0..3u32), any::<bool>());
    let request = request.prop_map(|(out_of_service, weight, own_weight)| OverrideRequest {
        out_of_service,
        weight,
        own_weight,
    });
    let registration = (of(), 1..3u16, proptest::option::of(0..3u8), any::<bool>());
    let step = prop_oneof![
        6 => registration.prop_map(|(of, port, weight, drains)| Step::Register { of, port, weight, drains }),
        1 => of().prop_map(Step::Renew),
        2 => of().prop_map(Step::Drain),
        2 => (of(), any::<bool>()).prop_map(|(of, says)| Step::Deregister { of, says }),
        4 => (of(), request).prop_map(|(of, request)| Step::Override { of, request }),
        1 => (0..2u8).prop_map(Step::EndProtection),
        2 => (0..3u8).prop_map(Step::Join),
        1 => (0..3u8, 0..2usize).prop_map(|(watcher, age)| Step::Leave { watcher, age }),
        3 => (0..3u8, 0..4u64).prop_map(|(watcher, back)| Step::Acknowledge { watcher, back }),
        1 => (0..4u64).prop_map(|back| Step::StopWaiting { back }),
        3 => (0..2u8, 0..5u8).prop_map(|(token, request)| Step::UseToken { token, request }),
    ];
    proptest::collection::vec(step, 0..50)
}

/// A store with the watchers that are there.
struct Run {
    fixture: Fixture,
    epoch: u64,
    sessions: Sessions,
    /// Every session that there was, by watcher.
    joined: [Vec<Session>; 3],
}

impl Run {
    fn new(fixture: Fixture) -> Self {
        let epoch = fixture.store.snapshot(None).epoch;
        Self { fixture, epoch, sessions: sessions(), joined: Default::default() }
    }

    /// An outcome with its version counted from the epoch.
    fn outcome<E: Debug>(&self, result: Result<u64, StoreError<E>>) -> String {
        match result {
            Ok(version) => format!("{}", version - self.epoch),
            Err(StoreError::Refused(reason)) => format!("{reason:?}"),
            Err(StoreError::Unavailable(error)) => panic!("{error}"),
        }
    }

    /// Does a step. Says what came of it.
    async fn go(&mut self, step: &Step) -> String {
        let store = Arc::clone(&self.fixture.store);
        let version = *store.version().borrow();
        let back = |back: &u64| version.saturating_sub(*back).max(self.epoch);
        let name = |watcher: &u8| format!("gateway-{watcher}");
        let key = |of: &(u8, u8)| (SERVICES[usize::from(of.0)], of.1.to_string());
        match step {
            Step::Register { of, port, weight, drains } => {
                let (service, id) = key(of);
                let mut instance = Instance::new(service, &*id, ([127, 0, 0, 1], *port).into());
                if let Some(weight) = weight {
                    instance = instance.with_metadata("weight", weight.to_string());
                }
                if *drains {
                    instance.status = Status::Draining;
                }
                self.outcome(store.register(&instance, LONG).await)
            }
            Step::Renew(of) => {
                let (service, id) = key(of);
                self.outcome(store.renew(service, &id).await.map(|()| self.epoch))
            }
            Step::Drain(of) => {
                let (service, id) = key(of);
                self.outcome(store.drain(service, &id).await)
            }
            Step::Deregister { of, says } => {
                let (service, id) = key(of);
                let said = says.then(|| LeaveRequest { served: 3, ..LeaveRequest::default() });
                self.outcome(store.deregister(service, &id, said).await)
            }
            Step::Override { of, request } => {
                let (service, id) = key(of);
                self.outcome(store.set_override((service, &id), request).await)
            }
            Step::EndProtection(service) => {
                let ended = store.end_protection(SERVICES[usize::from(*service)]).await;
                format!("{:?}", ended.unwrap())
            }
            Step::Join(watcher) => {
                let session = join(&self.fixture, &mut self.sessions, &name(watcher)).await;
                self.joined[usize::from(*watcher)].push(session);
                String::new()
            }
            Step::Leave { watcher, age } => {
                let joined = &mut self.joined[usize::from(*watcher)];
                if let Some(index) = joined.len().checked_sub(1 + age) {
                    let session = joined.remove(index);
                    store.left(&session);
                    self.sessions.leave(&session);
                    self.until_told().await;
                }
                String::new()
            }
            Step::Acknowledge { watcher, back: by } => {
                format!("{}", store.acknowledge(&name(watcher), back(by)).await.unwrap())
            }
            Step::StopWaiting { back: by } => {
                let mut late = store.stop_waiting_for(back(by)).await.unwrap();
                late.sort_unstable();
                format!("{late:?}")
            }
            Step::UseToken { token, request } => {
                let (claims, request) = (claims(&token.to_string()), request.to_string());
                format!("{}", self.fixture.uses.count(&claims, 2, &request).await.unwrap())
            }
        }
    }

    /// Until a session's end is known, as that of one which leaves after it is.
    async fn until_told(&mut self) {
        let last = join(&self.fixture, &mut self.sessions, "last").await;
        self.fixture.store.left(&last);
        self.sessions.leave(&last);
        eventually("the last one has left", async || {
            !self.fixture.store.acknowledge("last", 0).await.unwrap()
        })
        .await;
    }

    /// Everything that can be read, without times, and versions counted from the epoch.
    async fn state(&self) -> String {
        let store = &self.fixture.store;
        let snapshot = store.snapshot(None);
        let changes: Vec<_> = (self.epoch..=snapshot.version + 1)
            .map(|from| match store.since(from, self.epoch) {
                Since::NeedsSnapshot => None,
                Since::Changes(changes) => Some(
                    changes
                        .iter()
                        .map(|c| (c.version - self.epoch, c.kind, c.instance.clone()))
                        .collect::<Vec<_>>(),
                ),
            })
            .collect();
        let departures = store.departures(None).await.unwrap().into_iter();
        let departures: Vec<_> = departures.map(|d| (d.instance, d.reason, d.said)).collect();
        let report = store.leases(Some("core")).await.unwrap();
        let leases: Vec<_> = report.leases.into_iter().map(|lease| lease.instance).collect();
        let mut acks = Vec::new();
        for version in self.epoch..=snapshot.version {
            acks.push(state(&self.fixture, version).await);
        }
        format!(
            "{:#?}",
            (
                snapshot.version - self.epoch,
                report.version - self.epoch,
                snapshot.instances,
                (snapshot.protected, changes, departures, leases, acks),
            )
        )
    }
}

async fn compare(steps: &[Step]) -> TestCaseResult {
    let (memory, redis) = tokio::join!(Fixture::in_memory(LIMITS), Fixture::in_redis(LIMITS));
    let (mut memory, mut redis) = (Run::new(memory), Run::new(redis));
    for (number, step) in steps.iter().enumerate() {
        let outcomes = (memory.go(step).await, redis.go(step).await);
        prop_assert_eq!(&outcomes.0, &outcomes.1, "step {}: {:?}", number, step);
    }
    prop_assert_eq!(memory.state().await, redis.state().await);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_store_does_the_same(steps in steps()) {
        RUNTIME.block_on(compare(&steps))?;
    }
}
