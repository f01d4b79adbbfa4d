use super::*;
use crate::outliers::tests::{check_settings, settings};
use crate::outliers::{OutlierMetrics, OutlierSettings};
use tourin_chassis::metrics::Metrics;

const SECOND: Duration = Duration::from_secs(1);

/// An instance with a peer that is up.
fn health(settings: OutlierSettings) -> Arc<Health> {
    let metrics = OutlierMetrics::new(&Metrics::new("test")).of("core");
    let group = Arc::new(Group::new("core", settings.into(), metrics, Arc::default()));
    let [one, other] = ["a", "b"].map(|id| Health::new(id, Arc::clone(&group)));
    group.recount([&one, &other].into_iter());
    Arc::new(one)
}

#[test]
fn failures_in_a_row_eject() {
    let health = health(settings());
    let now = Instant::now();
    let fail = || health.failed(Failure::Broken, now, now);
    assert_eq!([fail(), fail()], [None, None]);
    // A call that ends well begins the count again; one that only gets a head does not.
    health.completed(true);
    assert_eq!([fail(), fail()], [None, None]);
    health.answered(now, SECOND);
    assert_eq!(fail(), Some(Reason::Failures));
    assert!(!health.is_up() && !health.is_unreachable());
    assert_eq!(fail(), None, "it is ejected once");
}

#[test]
fn the_first_timeout_of_a_silent_instance_ejects() {
    let now = Instant::now() + SECOND;
    let silent = health(settings());
    silent.answered(now, SECOND);
    let failed = silent.failed(Failure::TimedOut, now + SECOND, now + 13 * SECOND);
    assert_eq!(failed, Some(Reason::Timeouts));
    // One that answers other calls meanwhile is ejected by the second in a row.
    let slow = health(settings());
    slow.answered(now + 2 * SECOND, SECOND);
    assert_eq!(slow.failed(Failure::TimedOut, now, now + 12 * SECOND), None);
    slow.completed(false);
    assert_eq!(slow.failed(Failure::TimedOut, now, now + 12 * SECOND), None);
    assert_eq!(slow.failed(Failure::TimedOut, now, now + 12 * SECOND), Some(Reason::Timeouts));
    let never = health(OutlierSettings { eject_timeouts: 0, eject_failures: 0, ..settings() });
    assert!((0..5).all(|_| never.failed(Failure::TimedOut, now, now).is_none()));
}

#[test]
fn an_ejection_ends_with_a_health_check_after_its_time() {
    let (health, checks) = (health(settings()), check_settings());
    let start = Instant::now() + SECOND;
    let at = |seconds: u32| start + seconds * SECOND;
    let check = |passed, seconds| health.checked(passed, &checks, at(seconds), at(seconds));
    assert!(health.eject(Reason::Timeouts, at(0)));
    assert!(health.check_due(&checks, at(0)), "at once");
    assert!(!health.check_due(&checks, at(0)), "one at a time");
    check(true, 1);
    assert!(!health.is_up(), "not before its time");
    assert!(!health.check_due(&checks, at(4)));
    assert!(health.check_due(&checks, at(5)));
    check(false, 5);
    assert!(health.is_unreachable());
    assert!(!health.check_due(&checks, at(5)) && health.check_due(&checks, at(7)));
    check(true, 7);
    assert!(health.is_up());
    assert!(health.warm_for().is_some(), "its share grows");

    // The next one is twice as long, and after a quiet minute as long as the first.
    assert!(health.eject(Reason::Timeouts, at(8)));
    assert_eq!(health.report(at(8)).left_ms, Some(10_000));
    check(true, 18);
    assert!(health.is_up());
    health.take_sample(at(79));
    health.take_sample(at(140));
    assert!(health.eject(Reason::Timeouts, at(141)));
    assert_eq!(health.report(at(141)).left_ms, Some(5_000));
}

#[test]
fn a_health_check_finds_an_instance_that_calls_do_not() {
    let (health, checks) = (health(settings()), check_settings());
    let start = Instant::now() + SECOND;
    let at = |ms: u64| start + Duration::from_millis(ms);
    assert!(!health.check_due(&checks, at(1_000)), "it is idle, and not for long");
    assert!(health.check_due(&checks, at(6_000)));
    health.checked(false, &checks, at(6_000), at(7_000));
    assert!(health.is_up(), "one failed check of an idle instance is not enough");
    assert!(health.check_due(&checks, at(11_100)));
    health.checked(false, &checks, at(11_100), at(11_100));
    assert!(health.is_unreachable());
    assert_eq!(health.report(at(11_100)).reason, Some("unreachable"));
    assert!(health.check_due(&checks, at(12_200)));
    health.checked(true, &checks, at(12_200), at(12_200));
    assert!(health.is_up());

    // Calls wait, and it answers nothing.
    let call = health.begin(at(13_000));
    assert!(!health.check_due(&checks, at(13_900)));
    assert!(health.check_due(&checks, at(14_000)));
    health.answered(at(14_500), SECOND);
    health.checked(false, &checks, at(14_000), at(15_000));
    assert!(health.is_up(), "it has answered since the check began");
    assert!(health.check_due(&checks, at(15_600)));
    health.checked(false, &checks, at(15_600), at(16_600));
    assert!(health.is_unreachable());
    drop(call);
    assert_eq!(health.in_flight(), 0);
}

#[test]
fn an_open_stream_is_no_call_that_waits() {
    let (health, checks) = (health(settings()), check_settings());
    let start = Instant::now() + SECOND;
    let quiet = start + Duration::from_millis(1_500);
    let mut stream = health.begin(start);
    health.answered(start, SECOND);
    stream.becomes_stream();
    assert!(!health.check_due(&checks, quiet), "for a second nothing has come");
    let call = health.begin(start);
    drop(stream);
    assert!(health.check_due(&checks, quiet), "a call waits");
    drop(call);
    assert_eq!(health.in_flight(), 0);
}
