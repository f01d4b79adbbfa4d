//! Search, map, and one spot.

use reqwest::Method;
use serde_json::Value;

use crate::world::{World, form, ids};

const FIELDS: [&str; 7] = ["address", "id", "imageUrl", "lat", "lng", "name", "tags"];

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|spot| spot["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_there_and_paged() {
    let world = World::start().await;
    let answer = world.get("/api/tour-spots").await;
    let [page, here, limit, pages, items] = answer.paging();
    assert_eq!([page, here, limit], [1, 10, 10]);
    assert!(items >= 250, "{items}");
    assert_eq!(pages, items.div_ceil(10));
    let spots = answer.expect(200);
    let fields: Vec<_> = spots[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, FIELDS);

    let past = world.get(&format!("/api/tour-spots?pageNo={}", pages + 1)).await;
    assert_eq!(past.paging(), [pages + 1, 0, 10, pages, items]);
    assert!(past.expect(200).as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn search_finds_korean_substrings_from_two_characters_on() {
    let world = World::start().await;
    for query in ["경복", "복궁", "경복궁"] {
        let found = world.get(&format!("/api/tour-spots?query={}", form(query))).await.expect(200);
        assert!(names(&found).contains(&"경복궁"), "{query}: {found}");
    }
    for nothing in ["%", "'", "*", "OR", "경%궁", "\" OR 1=1 --", "\u{1f3d4}"] {
        let found =
            world.get(&format!("/api/tour-spots?query={}", form(nothing))).await.expect(200);
        assert!(!names(&found).contains(&"경복궁"), "{nothing}: {found}");
    }
    let all = world.get("/api/tour-spots").await.paging()[4];
    assert_eq!(world.get("/api/tour-spots?query=%20").await.paging()[4], all);
}

#[tokio::test(flavor = "multi_thread")]
async fn spots_sort_by_name_both_ways() {
    let world = World::start().await;
    let up = world.get("/api/tour-spots?sort=name-asc&pageSize=100").await.expect(200);
    let up = names(&up).into_iter().map(ToOwned::to_owned).collect::<Vec<_>>();
    assert!(up.is_sorted());
    let down = world.get("/api/tour-spots?sort=name-desc&pageSize=100").await.expect(200);
    assert!(names(&down).iter().rev().is_sorted());
    assert!(names(&down)[0] > up[0].as_str());
    world.get("/api/tour-spots?sort=rating").await.expect_error(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_filter_and_unknown_ones_are_refused() {
    let world = World::start().await;
    let (nature, history) = (form("자연"), form("역사"));
    let count =
        async |query: String| world.get(&format!("/api/tour-spots?{query}")).await.paging()[4];
    let repeated = count(format!("tags={nature}&tags={history}")).await;
    let listed = count(format!("tags={nature},{history}")).await;
    assert_eq!(repeated, listed);
    assert!(count(format!("tags={nature}")).await > 0);

    let found = world.get(&format!("/api/tour-spots?tags={nature}&pageSize=100")).await.expect(200);
    for spot in found.as_array().unwrap() {
        assert!(spot["tags"].as_array().unwrap().contains(&"자연".into()), "{spot}");
    }
    let message =
        world.get(&format!("/api/tour-spots?tags={}", form("우주"))).await.expect_error(422);
    assert!(message.contains("자연 (NATURE)"), "{message}");
    world.get("/api/tour-spots?customFilters=visited").await.expect_error(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_shows_what_lies_within() {
    let world = World::start().await;
    let seoul = "minLat=37.4&minLng=126.7&maxLat=37.7&maxLng=127.2";
    let found = world.get(&format!("/api/tour-spots/map?{seoul}")).await.expect(200);
    assert!(names(&found).contains(&"경복궁"), "{found}");
    for spot in found.as_array().unwrap() {
        let (lat, lng) = (spot["lat"].as_f64().unwrap(), spot["lng"].as_f64().unwrap());
        assert!((37.4..=37.7).contains(&lat) && (126.7..=127.2).contains(&lng), "{spot}");
    }
    let palace = format!("/api/tour-spots/map?{seoul}&query={}", form("경복"));
    assert_eq!(names(&world.get(&palace).await.expect(200)), ["경복궁"]);

    for wrong in [
        "minLat=37.4&minLng=126.7&maxLat=37.7",
        "minLat=38&minLng=126.7&maxLat=37&maxLng=127.2",
        "minLat=x&minLng=126.7&maxLat=37.7&maxLng=127.2",
        "minLat=NaN&minLng=126.7&maxLat=37.7&maxLng=127.2",
        "minLat=-91&minLng=126.7&maxLat=37.7&maxLng=127.2",
    ] {
        world.get(&format!("/api/tour-spots/map?{wrong}")).await.expect_error(422);
    }
    world
        .get(&format!("/api/tour-spots/map?{seoul}&customFilters=bookmarked"))
        .await
        .expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_spot_has_its_description() {
    let world = World::start().await;
    let id = world.spot("경복궁").await;
    let spot = world.get(&format!("/api/tour-spots/{id}")).await.expect(200);
    assert_eq!(spot["name"], "경복궁");
    assert!(!spot["description"].as_str().unwrap().is_empty());
    assert!(spot.as_object().unwrap().contains_key("phoneNumber"));
    for nothing in ["999999999", "0", "-1", "abc", "9999999999999999999999"] {
        world.get(&format!("/api/tour-spots/{nothing}")).await.expect_error(404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_method_on_a_known_path_is_405_with_allow() {
    let world = World::start().await;
    let answer = world.send(world.request(Method::DELETE, "/api/tour-spots")).await;
    assert!(answer.header("allow").contains("GET"), "{answer:?}");
    answer.expect_error(405);
    world.get("/api/nothing-here").await.expect_error(404);
    world.get("/").await.expect_error(404);
    assert!(ids(&world.get("/api/tour-spots?unknown=1").await.expect(200)).len() == 10);
}
