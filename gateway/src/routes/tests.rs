use super::*;

#[test]
fn the_built_in_table_covers_the_contract() {
    let table = RouteTable::parse(BUILT_IN).unwrap();
    let cases = [
        ("POST", "/api/auth/signup", "core", Access::Anonymous),
        ("POST", "/api/auth/login", "core", Access::Anonymous),
        ("POST", "/api/auth/reissue", "core", Access::Public),
        ("POST", "/api/auth/logout", "core", Access::Logout),
        ("GET", "/api/auth/me", "core", Access::Session),
        ("POST", "/api/auth/delete-account", "core", Access::Session),
        ("POST", "/api/auth/update-profile", "core", Access::Session),
        ("POST", "/api/auth/update-password", "core", Access::Session),
        ("POST", "/api/security-events", "core", Access::Anonymous),
        ("GET", "/.well-known/jwks.json", "core", Access::Public),
        ("GET", "/api/users", "core", Access::Public),
        ("GET", "/api/users/u", "core", Access::Public),
        ("GET", "/api/users/u/bookmarks", "core", Access::Public),
        ("POST", "/api/users/u/bookmarks", "core", Access::Session),
        ("GET", "/api/users/u/bookmarks/1", "core", Access::Public),
        ("DELETE", "/api/users/u/bookmarks/1", "core", Access::Session),
        ("GET", "/api/users/u/tour-spot-reviews/likes", "core", Access::Public),
        ("GET", "/api/tour-spots", "core", Access::Optional),
        ("GET", "/api/tour-spots/map", "core", Access::Optional),
        ("HEAD", "/api/tour-spots/1", "core", Access::Public),
        ("GET", "/api/tour-spots/1/reviews", "core", Access::Public),
        ("POST", "/api/tour-spots/1/reviews", "core", Access::Session),
        ("DELETE", "/api/tour-spot-reviews/1", "core", Access::Session),
        ("PUT", "/api/tour-spot-reviews/1/likes", "core", Access::Session),
        ("GET", "/api/recommendations/trend", "recommendation", Access::Session),
        ("GET", "/api/recommendations/personalized", "recommendation", Access::Session),
        ("GET", "/api/tour-spots/1/similar", "recommendation", Access::Public),
    ];
    for (method, path, service, access) in cases {
        let route = table.find(path).unwrap_or_else(|| panic!("no route for {path}"));
        let method = method.parse().unwrap();
        assert_eq!((&*route.service, route.access(&method)), (service, Some(&access)), "{path}");
    }
    for path in [
        "/",
        "/api",
        "/api/nothing",
        "/internal/events",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/users/u/",
    ] {
        assert!(table.find(path).is_none(), "{path}");
    }
    let bookmarks = table.find("/api/users/u/bookmarks").unwrap();
    assert_eq!(bookmarks.allow(), "GET, HEAD, POST");
    assert_eq!(bookmarks.access(&Method::DELETE), None);
}

#[test]
fn guessing_and_bulk_accounts_are_slowed_down() {
    let table = RouteTable::parse(BUILT_IN).unwrap();
    for (path, expected) in
        [("/api/auth/login", 300), ("/api/auth/signup", 300), ("/api/auth/reissue", 600)]
    {
        let rate = table.find(path).unwrap().rate_limits.per_address();
        assert_eq!(rate, Some(expected), "{path}");
    }
}

#[test]
fn the_most_specific_template_wins() {
    let table = RouteTable::parse(
        r#"
        [[route]]
        path = "/{*rest}"
        service = "a"
        methods = { GET = "public" }
        [[route]]
        path = "/api/tour-spots/{*rest}"
        service = "b"
        methods = { GET = "public" }
        [[route]]
        path = "/api/tour-spots/{id}/similar"
        service = "c"
        methods = { GET = "role:admin" }
        "#,
    )
    .unwrap();
    let service = |path| table.find(path).map(|route| &*route.service);
    assert_eq!(service("/api/tour-spots/7/similar"), Some("c"));
    assert_eq!(service("/api/tour-spots/7/similar/x"), Some("b"));
    assert_eq!(service("/api/tour-spots/7"), Some("b"));
    assert_eq!(service("/other"), Some("a"));
    assert_eq!(service("/internal/events"), None);
    assert_eq!(service("/readyz"), None);
    assert_eq!(service("/metrics"), None);
}

#[test]
fn a_bad_table_is_refused_with_line_and_field() {
    let entry = |body: &str| format!("# routes\n[[route]]\n{body}\n");
    for (body, line, words) in [
        ("path = \"/a\"\nservice = \"core\"", 2, "methods"),
        ("path = \"/a\"\nservice = \"core\"\nmethods = {}", 2, "no methods"),
        ("path = \"/a\"\nservice = \"core\"\nmethods = { GET = \"everyone\" }", 5, "methods.GET"),
        ("path = \"/a\"\nservice = \"core\"\nmethods = { FETCH = \"public\" }", 5, "methods.FETCH"),
        ("path = \"/a\"\nservice = \"Core!\"\nmethods = { GET = \"public\" }", 4, "service"),
        ("path = \"a\"\nservice = \"core\"\nmethods = { GET = \"public\" }", 3, "path"),
        ("path = \"/a/../b\"\nservice = \"core\"\nmethods = { GET = \"public\" }", 3, "path"),
        ("path = \"/a b\"\nservice = \"core\"\nmethods = { GET = \"public\" }", 3, "path"),
        (
            "path = \"/internal/{*x}\"\nservice = \"core\"\nmethods = { GET = \"public\" }",
            3,
            "never routed",
        ),
        ("path = \"/a/{*x}/b\"\nservice = \"core\"\nmethods = { GET = \"public\" }", 3, "path"),
        (
            "path = \"/api/openapi.json\"\nservice = \"core\"\nmethods = { GET = \"public\" }",
            3,
            "itself",
        ),
        (
            "path = \"/a\"\nservice = \"core\"\nmethods = { GET = \"public\" }\ncolour = 1",
            6,
            "colour",
        ),
        (
            "path = \"/a\"\nservice = \"core\"\nmethods = { GET = \"public\" }\nrate_per_minute = 0",
            6,
            "rate_per_minute",
        ),
        (
            "path = \"/a\"\nservice = \"core\"\nmethods = { GET = \"public\" }\ntotal_timeout_ms = 0",
            6,
            "total_timeout_ms",
        ),
    ] {
        let error = RouteTable::parse(&entry(body)).expect_err(body);
        assert!(error.reason.contains(words), "{body}: {error}");
        assert_eq!(error.line, line, "{body}: {error}");
    }
    assert!(RouteTable::parse("route = []").is_err());
    assert!(RouteTable::parse("[[route]\n").is_err());
}

#[test]
fn a_service_has_a_policy_that_its_routes_may_replace() {
    let route = |path: &str, more: &str| {
        let methods = "methods = { GET = \"public\" }";
        format!("[[route]]\npath = \"{path}\"\nservice = \"core\"\n{methods}\n{more}\n")
    };
    let hash = "[route.balance]\npolicy = \"hash\"\nhash_by = \"member\"";
    let table = format!(
        "{}{}[service.core.balance]\npolicy = \"least-requests\"\n",
        route("/a", ""),
        route("/b", hash),
    );
    let table = RouteTable::parse(&table).unwrap();
    assert_eq!(table.find("/a").unwrap().balance, Policy::LeastRequests);
    assert_eq!(table.find("/b").unwrap().balance, Policy::Hash(crate::balance::HashKey::Member));
    assert_eq!(
        RouteTable::parse(&route("/a", "")).unwrap().find("/a").unwrap().balance,
        Policy::RoundRobin
    );

    let refused = |text: &str| RouteTable::parse(text).unwrap_err();
    let error = refused(&route("/a", "[route.balance]\npolicy = \"best\""));
    assert_eq!(error.line, 6);
    assert!(error.reason.contains("balance.policy = \"best\": expected"), "{error}");
    let error = refused(&route("/a", "[service.cores.balance]\npolicy = \"round-robin\""));
    assert_eq!((error.line, error.reason.contains("service.cores")), (5, true), "{error}");
}
