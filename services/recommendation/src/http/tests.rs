//! The API on the service's router, with signed identities.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tourin_chassis::health::Health;
use tourin_chassis::http::{Admission, HttpLimits, service_router};
use tourin_chassis::identity::testing::{gateway_signer, peer};
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tower::ServiceExt as _;

use crate::SERVICE;
use crate::domain::spot::Spot;
use crate::scenario::{World, spot};

struct Service {
    world: World,
    router: Router,
}

impl Service {
    async fn with_spots(count: i64) -> Self {
        Self::over(World::with_spots(count).await)
    }

    fn over(world: World) -> Self {
        let router = service_router(
            SERVICE,
            super::router(world.recommender.clone(), world.audit()),
            Admission::new(SERVICE, super::CALLERS),
            Health::new(),
            &HttpLimits::default(),
        );
        Self { world, router }
    }

    async fn get(&self, path: &str, caller: Option<Subject>) -> (StatusCode, Value) {
        Self::read(self.send(path, caller).await).await
    }

    async fn get_as_operator(&self, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).extension(peer("operator")).body(Body::empty()).unwrap();
        Self::read(self.router.clone().oneshot(request).await.unwrap()).await
    }

    async fn read(response: Response) -> (StatusCode, Value) {
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// As the gateway, for a member or a visitor, or for itself.
    async fn send(&self, path: &str, caller: Option<Subject>) -> Response {
        let mut request = Request::get(path).extension(peer("gateway"));
        if let Some(caller) = caller {
            request = request.header(IDENTITY_HEADER, gateway_signer().sign(&caller, SERVICE));
        }
        let request = request.body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }
}

fn member(id: &str) -> Option<Subject> {
    Some(Subject::Member { id: id.to_owned(), session: "session".to_owned(), roles: Vec::new() })
}

fn visitor() -> Option<Subject> {
    Some(Subject::Visitor { pseudonym: "anon:abcd".to_owned() })
}

fn ids(body: &Value) -> Vec<&str> {
    let spots = body.as_array().unwrap().iter();
    spots.map(|spot| spot["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_member_reads_the_trend_as_overviews() {
    let service = Service::with_spots(3).await;
    let picture = Spot {
        image_url: Some("https://example.org/4.jpg".to_owned()),
        ..spot(4, &["역사", "문화"])
    };
    service.world.add(picture).await;
    service.world.view("anon:abcd", 1).await;
    service.world.bookmark("member01", 4).await;
    let (status, body) = service.get("/api/recommendations/trend", member("member02")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        body,
        json!([
            {"id": "4", "name": "곳 4", "address": "길 4", "lat": 35.4, "lng": 127.0,
             "imageUrl": "https://example.org/4.jpg", "tags": ["역사", "문화"]},
            {"id": "1", "name": "곳 1", "address": "길 1", "lat": 35.1, "lng": 127.0,
             "imageUrl": null, "tags": ["자연"]},
        ])
    );
}

#[tokio::test]
async fn trend_and_personal_recommendations_need_a_session() {
    let service = Service::with_spots(3).await;
    for path in ["/api/recommendations/trend", "/api/recommendations/personalized?k=3"] {
        for caller in [None, visitor()] {
            let (status, body) = service.get(path, caller).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(body["error"], "unauthenticated");
            assert!(body["message"].is_string());
        }
    }
}

#[tokio::test]
async fn refusals_are_in_the_readers_language() {
    let service = Service::with_spots(3).await;
    for (path, status, korean, english) in [
        (
            "/api/tour-spots/99/similar",
            StatusCode::NOT_FOUND,
            "해당 관광지를 찾을 수 없습니다.",
            "there is no such tour spot",
        ),
        (
            "/api/tour-spots/1/similar?k=101",
            StatusCode::UNPROCESSABLE_ENTITY,
            "k 값은 0부터 100까지의 정수 하나여야 합니다.",
            "k must be one whole number from 0 to 100",
        ),
    ] {
        for (languages, language, message) in
            [("ko-KR,ko;q=0.9", "ko", korean), ("fr", "en", english), ("en, ko", "en", english)]
        {
            let request =
                Request::get(path).header("accept-language", languages).extension(peer("gateway"));
            let request = request.body(Body::empty()).unwrap();
            let response = service.router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["content-language"], language, "{path}");
            assert_eq!(response.headers()["vary"], "accept-language", "{path}");
            let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["message"], message, "{path}");
        }
    }
}

#[tokio::test]
async fn personal_recommendations_are_the_callers_own() {
    let service = Service::with_spots(20).await;
    service.world.bookmark("member01", 5).await;
    let path = "/api/recommendations/personalized?user_id=member01&k=100";
    let (status, body) = service.get(path, member("member02")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ids(&body)[0], "5");
    let (_, body) = service.get(path, member("member01")).await;
    assert_eq!(body.as_array().unwrap().len(), 19);
    assert!(!ids(&body).contains(&"5"));
}

#[tokio::test]
async fn k_is_0_to_100_with_its_default() {
    let service = Service::with_spots(120).await;
    for number in 1..=120 {
        service.world.view("member01", number).await;
    }
    for (path, default) in [
        ("/api/recommendations/trend", 5),
        ("/api/recommendations/personalized", 5),
        ("/api/tour-spots/7/similar", 10),
    ] {
        for (query, expected) in
            [("", default), ("?k=0", 0), ("?k=1", 1), ("?k=100", 100), ("?other=1", default)]
        {
            let (status, body) = service.get(&format!("{path}{query}"), member("member02")).await;
            assert_eq!(status, StatusCode::OK, "{path}{query}");
            assert_eq!(ids(&body).len(), expected, "{path}{query}");
        }
        for query in ["k=101", "k=-1", "k=", "k=five", "k=5.0", "k=1&k=2", "k=99999999999999999999"]
        {
            let (status, body) = service.get(&format!("{path}?{query}"), member("member02")).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}?{query}");
            assert_eq!(body["error"], "invalid");
        }
    }
}

#[tokio::test]
async fn anyone_reads_similar_spots_of_one_that_is_there() {
    let service = Service::with_spots(20).await;
    for caller in [None, visitor(), member("member01")] {
        let (status, body) = service.get("/api/tour-spots/10/similar?k=2", caller).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(ids(&body), ["8", "12"]);
    }
    service.world.delete(10).await;
    for id in ["10", "21", "abc", "-1", "010", "99999999999999999999", "%00"] {
        let (status, body) = service.get(&format!("/api/tour-spots/{id}/similar"), None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{id}");
        assert_eq!(body["error"], "not_found");
    }
}

#[tokio::test]
async fn until_the_first_resync_has_ended_every_call_is_answered_503() {
    let service = Service::over(World::before_resync().await);
    for path in [
        "/api/tour-spots/10/similar",
        "/api/recommendations/trend",
        "/api/recommendations/personalized",
    ] {
        let answer = service.send(path, member("member01")).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1");
    }
}

#[tokio::test]
async fn the_document_is_for_the_gateway_and_names_every_call_and_status() {
    let service = Service::with_spots(0).await;
    let path = "/internal/openapi.json";
    assert_eq!(service.get(path, member("member01")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(service.get_as_operator(path).await.0, StatusCode::FORBIDDEN);
    let (status, document) = service.get(path, None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, statuses) in [
        ("/api/recommendations/trend", ["200", "401", "422", "503"]),
        ("/api/recommendations/personalized", ["200", "401", "422", "503"]),
        ("/api/tour-spots/{id}/similar", ["200", "404", "422", "503"]),
    ] {
        let responses = &document["paths"][path]["get"]["responses"];
        for status in statuses {
            assert!(responses[status].is_object(), "{path} {status}");
        }
    }
    let overview = &document["components"]["schemas"]["TourSpotOverview"];
    assert_eq!(
        overview["required"],
        json!(["id", "name", "address", "lat", "lng", "imageUrl", "tags"])
    );
    let tags = document["components"]["schemas"]["TourSpotTag"]["enum"].as_array().unwrap();
    assert_eq!((tags.len(), &tags[0]), (9, &json!("자연")));
    assert!(document["components"]["schemas"]["ErrorBody"].is_object());
}

#[tokio::test]
async fn only_operators_may_read_the_stores() {
    let bench = Service::with_spots(0).await;
    for path in ["/internal/trend/scores?ids=1", "/internal/histories/member01"] {
        for caller in [None, visitor(), member("member01")] {
            assert_eq!(bench.get(path, caller).await.0, StatusCode::FORBIDDEN, "{path}");
        }
    }
}

#[tokio::test]
async fn scores_come_with_all_parameters_of_their_formula() {
    let bench = Service::with_spots(0).await;
    bench.world.bookmark("member01", 7).await;
    bench.world.view("anon:abcd", 7).await;
    bench.world.pass(chrono::TimeDelta::hours(1));
    let (status, body) = bench.get_as_operator("/internal/trend/scores?ids=7,8").await;
    assert_eq!(status, StatusCode::OK);
    let at: chrono::DateTime<chrono::Utc> = body["at"].as_str().unwrap().parse().unwrap();
    assert_eq!(at, crate::scenario::start() + chrono::TimeDelta::seconds(3_602));
    assert_eq!(body["halfLifeMs"], 3_600_000);
    assert_eq!(body["weights"], json!({"bookmark": 2.0, "view": 1.0}));
    let halved = |seconds: f64| (-(seconds / 3_600.0)).exp2();
    let expected = 2.0 * halved(3_602.0) + halved(3_601.0);
    assert!((body["scores"]["7"].as_f64().unwrap() - expected).abs() < 1e-9, "{body}");
    assert_eq!(body["scores"]["8"], 0.0);

    let many = vec!["1"; 1_001].join(",");
    for query in ["", "ids=", "ids=x", "ids=-1", &format!("ids={many}")] {
        let path = format!("/internal/trend/scores?{query}");
        assert_eq!(bench.get_as_operator(&path).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
}

#[tokio::test]
async fn a_history_is_listed_by_kind_of_interaction() {
    let bench = Service::with_spots(0).await;
    bench.world.bookmark("member01", 7).await;
    bench.world.view("member01", 7).await;
    bench.world.view("member01", 12).await;
    let (status, body) = bench.get_as_operator("/internal/histories/member01").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, json!({"bookmarked": ["7"], "viewed": ["7", "12"]}));
    let (_, body) = bench.get_as_operator("/internal/histories/nobody01").await;
    assert_eq!(body, json!({"bookmarked": [], "viewed": []}));
}
