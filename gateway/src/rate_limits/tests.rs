use tokio::task::JoinSet;

use super::*;

#[derive(Deserialize)]
struct Raw {
    rate_per_minute: Option<Spanned<u64>>,
    #[serde(default)]
    rate_limit: Vec<RawRateLimit>,
}

/// The limits of a route with these lines.
fn table(lines: &str) -> RouteLimits {
    // As they stand in a table, below `[[route]]`.
    let raw: Raw = toml::from_str(&lines.replace("[[route.", "[[")).unwrap();
    RouteLimits::check(raw.rate_per_minute, raw.rate_limit).unwrap()
}

fn from(address: &str) -> Caller<'_> {
    Caller { address: address.parse().unwrap(), member: None }
}

/// Counts a call by all limits of `/a`. Gives the header, or the refusal.
async fn call(
    limits: &RateLimits,
    table: &RouteLimits,
    caller: Caller<'_>,
) -> Result<String, Response> {
    let mut headers = RateHeaders::default();
    let route = LimitedRoute { template: "/a", limits: table };
    limits.check_address(route, caller, &mut headers).await?;
    limits.check_caller(route, caller, &mut headers).await?;
    Ok(headers.state)
}

#[tokio::test]
async fn clients_are_counted_apart_and_per_route() {
    let table = table("rate_per_minute = 2\n");
    let limits = RateLimits::new(None);
    let one = from("203.0.113.1");
    assert_eq!(call(&limits, &table, one).await.unwrap(), "\"address\";r=1;t=30");
    assert_eq!(call(&limits, &table, one).await.unwrap(), "\"address\";r=0;t=60");
    let refused = call(&limits, &table, one).await.unwrap_err();
    assert_eq!(refused.status, 429);
    let (two, neighbour, three) =
        (from("2001:db8::1"), from("2001:db8::2"), from("2001:db8:0:1::1"));
    assert!(call(&limits, &table, two).await.is_ok());
    assert!(call(&limits, &table, neighbour).await.is_ok());
    assert!(call(&limits, &table, two).await.is_err(), "one /64 is one client");
    assert!(call(&limits, &table, three).await.is_ok());
    let mut headers = RateHeaders::default();
    for _ in 0..100 {
        let free = LimitedRoute { template: "/free", limits: &RouteLimits::default() };
        limits.check_address(free, one, &mut headers).await.unwrap();
    }
    assert_eq!(headers.state, "");
}

#[tokio::test]
async fn members_are_counted_wherever_they_call_from() {
    let table = table("[[route.rate_limit]]\nby = \"member\"\nper_minute = 1\nburst = 2\n");
    let limits = RateLimits::new(None);
    let as_member = |member, address| Caller { member: Some(member), ..from(address) };
    assert!(call(&limits, &table, as_member("one", "203.0.113.1")).await.is_ok());
    assert!(call(&limits, &table, as_member("one", "203.0.113.2")).await.is_ok());
    assert!(call(&limits, &table, as_member("one", "203.0.113.3")).await.is_err());
    assert!(call(&limits, &table, as_member("two", "203.0.113.1")).await.is_ok());
    // Visitors by their address.
    assert!(call(&limits, &table, from("203.0.113.1")).await.is_ok());
    assert!(call(&limits, &table, from("203.0.113.1")).await.is_ok());
    assert!(call(&limits, &table, from("203.0.113.1")).await.is_err());
}

#[tokio::test]
async fn a_route_has_one_limit_of_each_kind_and_headers_for_all() {
    let text = "rate_per_minute = 10\n\
        [[route.rate_limit]]\nby = \"route\"\nper_minute = 6\nburst = 3\nshared = true\n\
        [[route.rate_limit]]\nby = \"member\"\nper_minute = 20\n";
    let table = table(text);
    let limits = RateLimits::new(None);
    let policy = table.policy.clone().unwrap();
    assert_eq!(policy, "\"address\";q=10;w=60, \"member\";q=20;w=60, \"route\";q=6;w=60");
    let state = call(&limits, &table, from("203.0.113.1")).await.unwrap();
    assert_eq!(state, "\"address\";r=9;t=6, \"member\";r=19;t=3, \"route\";r=2;t=10");
    // All callers together, also without Redis.
    assert!(call(&limits, &table, from("203.0.113.2")).await.is_ok());
    assert!(call(&limits, &table, from("203.0.113.3")).await.is_ok());
    assert!(call(&limits, &table, from("203.0.113.4")).await.is_err());
}

#[tokio::test]
async fn a_changed_limit_counts_anew_and_the_same_one_goes_on() {
    let limits = RateLimits::new(None);
    let one = from("203.0.113.1");
    for _ in 0..2 {
        let again = table("rate_per_minute = 2\n");
        assert!(call(&limits, &again, one).await.is_ok());
    }
    assert!(call(&limits, &table("rate_per_minute = 2\n"), one).await.is_err());
    assert!(call(&limits, &table("rate_per_minute = 3\n"), one).await.is_ok());
}

#[tokio::test]
async fn calls_at_the_same_time_are_each_counted() {
    let limits = Arc::new(RateLimits::new(None));
    let table =
        Arc::new(table("[[route.rate_limit]]\nby = \"address\"\nper_minute = 1\nburst = 50\n"));
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let (limits, table) = (Arc::clone(&limits), Arc::clone(&table));
        calls.spawn(async move { call(&limits, &table, from("203.0.113.1")).await.is_ok() });
    }
    let allowed = calls.join_all().await.into_iter().filter(|allowed| *allowed).count();
    assert_eq!(allowed, 50);
}

#[tokio::test]
async fn somebody_with_very_many_addresses_uses_up_nobody_elses_count() {
    let limits = RateLimits::new(None);
    let table = table("rate_per_minute = 2\n");
    for number in 0..MAX_CALLERS {
        let address = std::net::Ipv4Addr::from_bits(number as u32);
        let caller = Caller { address: address.into(), member: None };
        call(&limits, &table, caller).await.unwrap();
    }
    let one = from("203.0.113.1");
    while call(&limits, &table, one).await.is_ok() {}
    // One in 65,536 shares that count.
    let others = ["203.0.113.2", "203.0.113.3"].map(from);
    assert!(
        call(&limits, &table, others[0]).await.is_ok()
            || call(&limits, &table, others[1]).await.is_ok()
    );
}
