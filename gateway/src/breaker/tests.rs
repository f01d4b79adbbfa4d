use tourin_chassis::config::defaults;

use super::*;

const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_secs(3);
const OPEN: Duration = Duration::from_secs(1);

fn breaker(adjust: impl FnOnce(&mut RouteBreaker)) -> Breaker {
    let mut route = RouteBreaker::default();
    adjust(&mut route);
    let settings: BreakerSettings = defaults(&[]);
    let policy = settings.policy(&route);
    Breaker::new("/a", "core".into(), route, policy)
}

/// Calls with these outcomes, one after the other, each at the instance with its number.
fn call(breaker: &Breaker, now: Instant, outcomes: &[(bool, Duration, u64)]) {
    for (failed, took, instance) in outcomes {
        let ticket = breaker.admit(now).expect("it admits the call");
        breaker.settle(ticket, *failed, *took, *instance, now);
    }
}

fn state(breaker: &Breaker, now: Instant) -> &'static str {
    breaker.report(now).state
}

const GOOD: (bool, Duration, u64) = (false, FAST, 1);
const BAD: (bool, Duration, u64) = (true, FAST, 1);

#[test]
fn it_opens_at_half_of_the_last_calls_and_not_before_five() {
    let now = Instant::now();
    let few = breaker(|_| {});
    call(&few, now, &[BAD; 4]);
    assert_eq!(state(&few, now), "closed");
    call(&few, now, &[BAD]);
    assert_eq!(state(&few, now), "open");
    let left = few.admit(now + OPEN / 4).unwrap_err();
    assert_eq!(left, OPEN * 3 / 4);
    assert_eq!(few.report(now).refused, 1);

    // Four of ten, whatever came before them.
    let many = breaker(|_| {});
    call(&many, now, &[GOOD; 30]);
    call(&many, now, &[BAD; 4]);
    assert_eq!(state(&many, now), "closed");
    call(&many, now, &[BAD]);
    assert_eq!(state(&many, now), "open");
}

#[test]
fn slow_calls_open_it_too() {
    let now = Instant::now();
    let slow = breaker(|_| {});
    call(&slow, now, &[GOOD; 3]);
    call(&slow, now, &[(false, SLOW, 1); 2]);
    assert_eq!(state(&slow, now), "closed", "two of five");
    call(&slow, now, &[(false, SLOW, 1)]);
    assert_eq!(state(&slow, now), "open");
}

#[test]
fn probes_close_it_or_open_it_again() {
    let start = Instant::now();
    let breaker = breaker(|_| {});
    let late = breaker.admit(start).unwrap();
    call(&breaker, start, &[BAD; 5]);
    let later = start + OPEN;
    assert_eq!(state(&breaker, later), "half_open");
    let mut probes: Vec<_> = (0..4).map(|_| breaker.admit(later).unwrap()).collect();
    assert!(probes.iter().all(|probe| probe.is_probe));
    assert_eq!(breaker.admit(later), Err(OPEN), "four probes and no more");
    // A call from before says nothing now.
    breaker.settle(late, true, FAST, 1, later);
    // A probe whose client has left gives its place to another one.
    breaker.withdraw(probes.pop().unwrap());
    probes.push(breaker.admit(later).unwrap());
    for (at, probe) in probes.into_iter().enumerate() {
        breaker.settle(probe, at < 2, FAST, 1, later);
    }
    assert_eq!(state(&breaker, later), "open", "two of four probes failed");

    let later = later + OPEN;
    call(&breaker, later, &[BAD, GOOD, GOOD, GOOD]);
    assert_eq!(state(&breaker, later), "closed");
    assert_eq!(breaker.report(later).opened, 2);
    call(&breaker, later, &[BAD; 4]);
    assert_eq!(state(&breaker, later), "closed", "the window begins anew");
}

#[test]
fn one_bad_instance_among_good_ones_does_not_open_it() {
    let now = Instant::now();
    let half = breaker(|_| {});
    for _ in 0..20 {
        call(&half, now, &[(true, SLOW, 7), (false, FAST, 8)]);
    }
    assert_eq!(state(&half, now), "closed");
    // Both of two.
    for _ in 0..5 {
        if state(&half, now) == "closed" {
            call(&half, now, &[(true, FAST, 8)]);
        }
    }
    assert_eq!(state(&half, now), "open");
    // The only one that is called.
    let only = breaker(|_| {});
    call(&only, now, &[(true, FAST, 7); 5]);
    assert_eq!(state(&only, now), "open");
}

#[test]
fn a_route_overrides_the_defaults_or_turns_it_off() {
    let now = Instant::now();
    let own = breaker(|route| {
        route.window_calls = Some(2);
        route.failure_percent = Some(100);
    });
    call(&own, now, &[BAD, GOOD]);
    assert_eq!(state(&own, now), "closed");
    call(&own, now, &[BAD]);
    assert_eq!(state(&own, now), "closed", "one of the last two");
    call(&own, now, &[BAD]);
    assert_eq!(state(&own, now), "open");

    let off = breaker(|route| route.enabled = Some(false));
    call(&off, now, &[BAD; 100]);
    assert!(off.admit(now).is_ok());
}

#[test]
fn a_changed_policy_has_a_new_breaker_and_the_others_keep_theirs() {
    let settings: BreakerSettings = defaults(&[]);
    let breakers = Breakers::new(settings);
    let service: Arc<str> = "s".into();
    let of = |a: &RouteBreaker| {
        [("/a", a), ("/b", &RouteBreaker::default())]
            .map(|(path, route)| breakers.of(path, &service, route))
    };
    let before = of(&RouteBreaker::default());
    let same = of(&RouteBreaker::default());
    let changed = of(&RouteBreaker { window_calls: Some(20), ..RouteBreaker::default() });
    assert!(Arc::ptr_eq(&before[0], &same[0]) && Arc::ptr_eq(&before[1], &same[1]));
    assert!(!Arc::ptr_eq(&before[0], &changed[0]) && Arc::ptr_eq(&before[1], &changed[1]));
    let moved = breakers.of("/b", &"another".into(), &RouteBreaker::default());
    assert!(!Arc::ptr_eq(&before[1], &moved), "another service");
    breakers.retain(|template| template == "/b");
    let left: Vec<_> = breakers.report().into_iter().map(|report| report.route).collect();
    assert_eq!(left, ["/b"]);
}
