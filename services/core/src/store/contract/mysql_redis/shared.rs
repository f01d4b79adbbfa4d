//! What several core processes share in Redis besides sessions.

use tourin_shared_events::outbox::testing::recorded;

use super::*;
use crate::app::attempts::{AttemptPolicy, Attempts};
use crate::app::client_source::ClientSource;
use crate::app::views::{RecordedViews, View, ViewPolicy, ViewStore};
use crate::domain::spot::SpotId;

#[tokio::test]
async fn a_view_that_another_process_recorded_is_a_repeat_within_the_window() {
    let mut stores = TestStores::with_proxy().await;
    let (one, other) = (stores.store().await, stores.store().await);
    let policy = ViewPolicy { remembered: 3, ..ViewPolicy::default() };
    let view = |visitor: u32, seconds| View {
        user_id: format!("anon:{visitor}"),
        spot: SpotId::new(1),
        at: at(seconds),
        trace: Default::default(),
    };
    let events = async || recorded(&one.mysql().outbox()).await.len();
    assert_eq!(
        one.record(&[view(1, 0), view(2, 0)], &policy).await.unwrap(),
        RecordedViews::Committed
    );
    other.record(&[view(1, 3_599), view(3, 3_599)], &policy).await.unwrap();
    assert_eq!(events().await, 3, "a repeat at the other process");
    other.record(&[view(1, 3_600)], &policy).await.unwrap();
    assert_eq!(events().await, 4, "the window is over");

    other.record(&[view(4, 3_601), view(5, 3_602)], &policy).await.unwrap();
    let windows: usize = stores.behind.zcard(stores.key("views")).await.unwrap();
    assert_eq!(windows, 3, "the oldest windows make room");

    stores.cut().await;
    assert_eq!(one.record(&[view(6, 3_603)], &policy).await.unwrap(), RecordedViews::Committed);
    assert_eq!(events().await, 7, "views are recorded while redis is away");
    stores.remove().await;
}

#[tokio::test]
async fn failed_log_ins_are_counted_for_all_processes() {
    let mut stores = TestStores::with_proxy().await;
    let policy = AttemptPolicy { refill: Duration::from_secs(600), ..AttemptPolicy::default() };
    let processes = [stores.store().await, stores.store().await]
        .map(|store| Attempts::new(&policy, Some(Arc::new(store))));
    let source = ClientSource::Network("203.0.113.1".parse().unwrap());
    for n in 0..10 {
        let right = processes[n % 2].charge("hana12345", &source, false).await.unwrap();
        processes[n % 2].refund(&right).await;
        let _wrong = processes[n % 2].charge("hana12345", &source, false).await.unwrap();
    }
    for process in &processes {
        let refused = process.charge("hana12345", &source, false).await.unwrap_err();
        let wait = refused.retry_after;
        assert!(wait > Duration::from_secs(500) && wait <= policy.refill, "{wait:?}");
        let _another = process.charge("duli12345", &source, false).await.unwrap();
    }
    let counts = stores.keys("failures:").await;
    assert_eq!(counts.len(), 5, "two strict, two of accounts, one of the network: {counts:?}");

    stores.cut().await;
    let other = ClientSource::Network("203.0.113.2".parse().unwrap());
    let alone = async || processes[0].charge("hana12345", &other, false).await.is_ok();
    let mut allowed = 0;
    while alone().await {
        allowed += 1;
    }
    assert_eq!(allowed, 10, "each process counts alone while redis is away");
    stores.remove().await;
}
