//! Tour spots: the list, the map, one spot and its views.

use chrono::TimeDelta;
use http::StatusCode;
use serde_json::{Value, json};
use tourin_chassis::clock::SystemClock;
use tourin_chassis::identity::Subject;
use tourin_shared_events::outbox::testing::recorded;

use super::refused;
use crate::app::import::{Format, Observer, Progress, Rejected, import};
use crate::testing::{Answer, TestCore};

struct Strict;

impl Observer for Strict {
    fn rejected(&mut self, row: Rejected) {
        panic!("{row:?}");
    }

    fn progressed(&mut self, _: &Progress) {}
}

const SPOTS: &str = "id,name,address,lat,lng,tags,description,phoneNumber,imageUrl
1,경복궁,서울특별시 종로구 사직로 161,37.5796,126.977,역사|건축/조형,조선의 법궁,02-3700-3900,https://example.com/1.jpg
2,해운대해수욕장,부산광역시 해운대구,35.1587,129.1604,자연|휴양,,,
3,N서울타워,서울특별시 용산구 남산공원길 105,37.5512,126.9882,문화,,,
4,100% 한옥_마을,전라북도 전주시,35.8150,127.1530,역사|체험,,,
5,경복궁,서울특별시 다른 곳,37.58,126.98,축제,,,
";

/// The service with five spots.
pub(super) async fn with_spots() -> TestCore {
    let core = TestCore::start().await;
    add(&core, SPOTS).await;
    core
}

async fn add(core: &TestCore, csv: &str) {
    import(&core.store, csv.as_bytes(), Format::Csv, &SystemClock, &mut Strict).await.unwrap();
}

fn encoded(query: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish()
}

async fn get(core: &TestCore, path: &str, query: &[(&str, &str)]) -> Answer {
    core.call("GET", &format!("{path}?{}", encoded(query)), None, None).await
}

#[track_caller]
fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let items = answer.json();
    items.as_array().unwrap().iter().map(|spot| spot["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn spots_are_listed_by_code_point_and_id() {
    let core = with_spots().await;
    let ascending = ["4", "3", "1", "5", "2"];
    assert_eq!(ids(&get(&core, "/api/tour-spots", &[]).await), ascending);
    assert_eq!(ids(&get(&core, "/api/tour-spots", &[("sort", "name-asc")]).await), ascending);
    let descending = get(&core, "/api/tour-spots", &[("sort", "name-desc")]).await;
    assert_eq!(ids(&descending), ["2", "5", "1", "3", "4"]);
    assert_eq!(
        get(&core, "/api/tour-spots", &[]).await.json()[2],
        json!({
            "id": "1", "name": "경복궁", "address": "서울특별시 종로구 사직로 161",
            "lat": 37.5796, "lng": 126.977, "imageUrl": "https://example.com/1.jpg",
            "tags": ["역사", "건축/조형"],
        })
    );
}

#[tokio::test]
async fn a_page_says_where_it_is() {
    let core = with_spots().await;
    for (query, items, page, of) in [
        (("2", "2"), vec!["1", "5"], ["2", "2", "2", "3", "5"], "in the middle"),
        (("3", "2"), vec!["2"], ["3", "1", "2", "3", "5"], "the last"),
        (("9", "2"), vec![], ["9", "0", "2", "3", "5"], "past the end"),
        (
            ("9223372036854775807", "100"),
            vec![],
            ["9223372036854775807", "0", "100", "1", "5"],
            "far past the end",
        ),
    ] {
        let query = [("pageNo", query.0), ("pageSize", query.1)];
        let answer = get(&core, "/api/tour-spots", &query).await;
        assert_eq!(ids(&answer), items, "{of}");
        let headers = ["page", "page-size", "page-limit", "total-page", "total-item"]
            .map(|name| answer.header(&format!("x-pagination-{name}")).to_owned());
        assert_eq!(headers, page, "{of}");
    }
}

#[tokio::test]
async fn a_query_is_text_and_never_syntax() {
    let core = with_spots().await;
    for (text, found) in [
        ("해운대", vec!["2"]),
        ("운대", vec!["2"]),
        ("대", vec!["2"]),
        ("  해운대 ", vec!["2"]),
        ("\u{1112}\u{1162}\u{110b}\u{116e}\u{11ab}대", vec!["2"]),
        ("n서울", vec!["3"]),
        ("서울특별시", vec!["3", "1", "5"]),
        ("로구 사", vec!["1"]),
        ("%", vec!["4"]),
        ("_마", vec!["4"]),
        ("0%", vec!["4"]),
        ("", vec!["4", "3", "1", "5", "2"]),
        ("   ", vec!["4", "3", "1", "5", "2"]),
        ("*", vec![]),
        ("'", vec![]),
        ("\"", vec![]),
        ("경복궁 OR 해운대", vec![]),
        ("궁서", vec![]),
        ("\0", vec![]),
        ("\0경", vec![]),
        ("🏞", vec![]),
    ] {
        assert_eq!(ids(&get(&core, "/api/tour-spots", &[("query", text)]).await), found, "{text}");
    }
    let long = "가".repeat(101);
    let answer = get(&core, "/api/tour-spots", &[("query", &long)]).await;
    refused(&answer, 422, "invalid", "at most 100 characters");
}

#[tokio::test]
async fn tags_are_alternatives_repeated_or_with_commas() {
    let core = with_spots().await;
    let either = ["4", "3", "1"];
    let repeated = get(&core, "/api/tour-spots", &[("tags", "역사"), ("tags", "문화")]).await;
    assert_eq!(ids(&repeated), either);
    assert_eq!(ids(&get(&core, "/api/tour-spots", &[("tags", "역사,문화")]).await), either);
    let both = get(&core, "/api/tour-spots", &[("tags", "건축/조형"), ("query", "서울")]).await;
    assert_eq!(ids(&both), ["1"]);
    assert_eq!(both.header("x-pagination-total-item"), "1");
    let unknown = get(&core, "/api/tour-spots", &[("tags", "자연,바다")]).await;
    refused(&unknown, 422, "invalid", "tags must be among 자연 (NATURE), 역사 (HISTORY)");
}

#[tokio::test]
async fn an_invalid_list_parameter_is_422() {
    let core = with_spots().await;
    for (name, value) in [
        ("sort", "name"),
        ("sort", ""),
        ("pageNo", "0"),
        ("pageNo", "eins"),
        ("pageSize", "101"),
        ("customFilters", "visited"),
    ] {
        let answer = get(&core, "/api/tour-spots", &[(name, value)]).await;
        refused(&answer, 422, "invalid", name.trim_end_matches("No").trim_end_matches("Size"));
    }
}

#[tokio::test]
async fn only_a_member_can_ask_for_bookmarked_spots() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for id in ["2", "4"] {
        let body = Some(json!({"tourSpotId": id}));
        core.call("POST", "/api/users/hana12345/bookmarks", Some(&hana), body).await;
    }
    let korea = "minLat=33&minLng=124&maxLat=39&maxLng=132";
    let list = "/api/tour-spots?customFilters=bookmarked";
    let map = format!("/api/tour-spots/map?{korea}&customFilters=bookmarked");
    let visitor = Subject::Visitor { pseudonym: "anon:abc234".into() };
    for path in [list, &map] {
        for nobody in [None, Some(&visitor)] {
            let answer = core.call("GET", path, nobody, None).await;
            refused(&answer, 401, "unauthenticated", "session");
        }
    }
    assert_eq!(ids(&core.call("GET", list, Some(&hana), None).await), ["4", "2"]);
    assert_eq!(ids(&core.call("GET", &map, Some(&hana), None).await), ["2", "4"]);
    let narrowed = format!("{list}&tags={}", encoded(&[("", "자연")]).trim_start_matches('='));
    assert_eq!(ids(&core.call("GET", &narrowed, Some(&hana), None).await), ["2"]);
    core.call("POST", "/api/auth/delete-account", Some(&hana), None).await;
    for path in [list, &map] {
        let answer = core.call("GET", path, Some(&hana), None).await;
        refused(&answer, 401, "unauthenticated", "account");
    }
}

#[tokio::test]
async fn the_map_shows_its_box_and_needs_its_edges() {
    let core = with_spots().await;
    let seoul = [("minLat", "37.5"), ("minLng", "126.9"), ("maxLat", "37.6"), ("maxLng", "127")];
    assert_eq!(ids(&get(&core, "/api/tour-spots/map", &seoul).await), ["1", "3", "5"]);
    let point = [
        ("minLat", "37.5796"),
        ("minLng", "126.977"),
        ("maxLat", "37.5796"),
        ("maxLng", "126.977"),
    ];
    assert_eq!(ids(&get(&core, "/api/tour-spots/map", &point).await), ["1"], "edges belong to it");
    let narrowed = [&seoul[..], &[("query", "경복궁"), ("tags", "역사,자연")]].concat();
    assert_eq!(ids(&get(&core, "/api/tour-spots/map", &narrowed).await), ["1"]);
    for (name, value) in [
        ("minLat", ""),
        ("minLat", "90.1"),
        ("maxLat", "nan"),
        ("maxLng", "inf"),
        ("minLng", "-180.5"),
        ("minLat", "37.7"),
        ("minLng", "127.5"),
        ("maxLat", "north"),
    ] {
        let query = seoul.map(|(edge, old)| (edge, if edge == name { value } else { old }));
        let answer = get(&core, "/api/tour-spots/map", &query).await;
        refused(&answer, 422, "invalid", name);
    }
    for missing in 0..4 {
        let mut query = seoul.to_vec();
        let (name, _) = query.remove(missing);
        let answer = get(&core, "/api/tour-spots/map", &query).await;
        refused(&answer, 422, "invalid", name);
    }
}

#[tokio::test]
async fn the_map_is_bounded_and_the_same_each_time() {
    let core = TestCore::with(&["--map-spots", "20"]).await;
    let mut csv = String::from("id,name,address,lat,lng,tags\n");
    for id in 0..300 {
        // Many in one corner, a few elsewhere.
        let (lat, lng) =
            if id < 290 { (37.5, 127.0) } else { (33.5 + f64::from(id - 290) / 4.0, 126.5) };
        csv.push_str(&format!("{id},곳 {id},서울,{lat},{lng},자연\n"));
    }
    add(&core, &csv).await;
    let korea = [("minLat", "33"), ("minLng", "124"), ("maxLat", "39"), ("maxLng", "132")];
    let first = ids(&get(&core, "/api/tour-spots/map", &korea).await);
    assert_eq!(first.len(), 20);
    let few = first.iter().filter(|id| id.parse::<i32>().unwrap() >= 290).count();
    assert!(few >= 4, "not only the crowd is shown: {first:?}");
    assert_eq!(ids(&get(&core, "/api/tour-spots/map", &korea).await), first);
}

#[tokio::test]
async fn a_spot_is_shown_whole() {
    let core = with_spots().await;
    let spot = core.call("GET", "/api/tour-spots/1", None, None).await;
    assert_eq!(spot.status, StatusCode::OK);
    assert_eq!(
        spot.json(),
        json!({
            "id": "1", "name": "경복궁", "address": "서울특별시 종로구 사직로 161",
            "lat": 37.5796, "lng": 126.977, "imageUrl": "https://example.com/1.jpg",
            "description": "조선의 법궁", "phoneNumber": "02-3700-3900",
            "tags": ["역사", "건축/조형"],
        })
    );
    let bare = core.call("GET", "/api/tour-spots/2", None, None).await.json();
    for absent in ["imageUrl", "description", "phoneNumber"] {
        assert_eq!(bare[absent], Value::Null);
    }
    for id in ["6", "abc", "-1", "01", "1.0", "99999999999999999999", "%00", "%EA%B0%80"] {
        let answer = core.call("GET", &format!("/api/tour-spots/{id}"), None, None).await;
        refused(&answer, 404, "not_found", "no such");
    }
}

/// The events of views so far: the viewer and the spot.
async fn views(core: &TestCore) -> Vec<(Value, Value)> {
    core.state.content.views.flush().await.unwrap();
    let events = recorded(&core.store.outbox()).await.into_iter();
    let views = events.filter(|(_, event)| event.routing_key == "user.viewTourspot");
    views
        .map(|(_, event)| {
            let data = &event.envelope.data;
            (data["user_id"].clone(), data["tourspot_id"].clone())
        })
        .collect()
}

#[tokio::test]
async fn one_client_that_reads_all_the_time_makes_one_event_for_each_spot() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let visitor = Subject::Visitor { pseudonym: "anon:abc234".into() };
    for _ in 0..300 {
        for subject in [&visitor, &hana] {
            core.call("GET", "/api/tour-spots/1", Some(subject), None).await;
        }
    }
    assert_eq!(views(&core).await.len(), 2);
    core.clock.advance(TimeDelta::minutes(59));
    core.call("GET", "/api/tour-spots/1", Some(&visitor), None).await;
    assert_eq!(views(&core).await.len(), 2);
    core.clock.advance(TimeDelta::minutes(1));
    core.call("GET", "/api/tour-spots/1", Some(&visitor), None).await;
    assert_eq!(views(&core).await.len(), 3, "the trend counts it again");
}

#[tokio::test]
async fn a_successful_read_counts_as_a_view_by_the_caller() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let visitor = Subject::Visitor { pseudonym: "anon:abc234".into() };
    for (method, path, subject) in [
        ("GET", "/api/tour-spots/1", Some(&hana)),
        ("GET", "/api/tour-spots/2", Some(&visitor)),
        ("GET", "/api/tour-spots/3", None),
        ("HEAD", "/api/tour-spots/4", Some(&hana)),
        ("GET", "/api/tour-spots/404", Some(&hana)),
        ("GET", "/api/tour-spots", Some(&hana)),
    ] {
        core.call(method, path, subject, None).await;
    }
    let views = views(&core).await;
    assert_eq!(views, [(json!("hana12345"), json!("1")), (json!("anon:abc234"), json!("2"))]);
}

#[tokio::test]
async fn another_method_is_405_with_allow() {
    let core = with_spots().await;
    for path in ["/api/tour-spots", "/api/tour-spots/map", "/api/tour-spots/1"] {
        let answer = core.call("PATCH", path, None, None).await;
        refused(&answer, 405, "method_not_allowed", "Allow");
        assert!(answer.header("allow").contains("GET"), "{answer:?}");
    }
}
