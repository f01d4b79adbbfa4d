//! The OpenAPI descriptions of spots, bookmarks and reviews.

use serde_json::{Value, json};

use crate::domain::review::MAX_CONTENT_CHARS;
use crate::domain::search::MAX_QUERY_CHARS;
use crate::domain::tag::Tag;
use crate::testing::TestCore;

async fn document() -> Value {
    let core = TestCore::start().await;
    core.call("GET", "/internal/openapi.json", None, None).await.json()
}

#[tokio::test]
async fn every_call_is_described_with_its_statuses() {
    let document = document().await;
    for (path, method, statuses) in [
        ("/api/tour-spots", "get", "200 401 422 503"),
        ("/api/tour-spots/map", "get", "200 401 422 503"),
        ("/api/tour-spots/{id}", "get", "200 404 503"),
        ("/api/tour-spots/{id}/reviews", "get", "200 404 422 503"),
        ("/api/tour-spots/{id}/reviews", "post", "201 400 401 403 404 413 415 422 503"),
        ("/api/tour-spot-reviews/{id}", "delete", "204 401 403 404 503"),
        ("/api/tour-spot-reviews/{id}/likes", "put", "200 400 401 403 404 413 415 422 503"),
        ("/api/users/{userId}/bookmarks", "get", "200 404 422 503"),
        ("/api/users/{userId}/bookmarks", "post", "201 400 401 403 404 413 415 422 503"),
        ("/api/users/{userId}/bookmarks/{tourSpotId}", "get", "200 404 503"),
        ("/api/users/{userId}/bookmarks/{tourSpotId}", "delete", "204 401 403 404 503"),
        ("/api/users/{userId}/tour-spot-reviews/likes", "get", "200 404 422 503"),
    ] {
        let responses = document["paths"][path][method]["responses"].as_object();
        let responses = responses.unwrap_or_else(|| panic!("{method} {path} is not described"));
        let described: Vec<_> = responses.keys().map(String::as_str).collect();
        assert_eq!(described.join(" "), statuses, "{method} {path}");
    }
}

#[tokio::test]
async fn the_parameters_are_the_ones_that_the_parsers_accept() {
    let document = document().await;
    let parameters = |path: &str| -> Vec<Value> {
        document["paths"][path]["get"]["parameters"].as_array().unwrap().clone()
    };
    let named = |path: &str, name: &str| -> Value {
        let all = parameters(path);
        all.into_iter()
            .find(|parameter| parameter["name"] == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    let tags = [Tag::ALL.map(Tag::name), Tag::ALL.map(Tag::old_name)].concat();
    for path in ["/api/tour-spots", "/api/tour-spots/map"] {
        assert_eq!(named(path, "query")["schema"]["maxLength"], MAX_QUERY_CHARS);
        assert_eq!(named(path, "tags")["schema"]["items"]["enum"], json!(tags));
        let filters = &named(path, "customFilters")["schema"]["items"]["enum"];
        assert_eq!(*filters, json!(["bookmarked", "bookmark"]));
        for list in ["tags", "customFilters"] {
            let description = &named(path, list)["schema"]["description"];
            assert!(description.is_string(), "{list} of {path} is not described");
        }
    }
    let sorts = named("/api/tour-spots", "sort");
    assert!(sorts["schema"].to_string().contains(r#"["name-asc","name-desc"]"#), "{sorts}");
    for (edge, bound) in [("minLat", 90), ("maxLat", 90), ("minLng", 180), ("maxLng", 180)] {
        let parameter = named("/api/tour-spots/map", edge);
        assert_eq!(parameter["required"], true);
        assert_eq!(parameter["schema"]["maximum"].as_f64(), Some(f64::from(bound)), "{parameter}");
        assert_eq!(parameter["schema"]["minimum"].as_f64(), Some(-f64::from(bound)));
    }
    let content = &document["components"]["schemas"]["NewReview"]["properties"]["content"];
    assert_eq!(content["maxLength"], MAX_CONTENT_CHARS);
    assert_eq!(content["minLength"], 1);
}

#[tokio::test]
async fn a_page_is_described_with_its_headers() {
    let document = document().await;
    for path in ["/api/tour-spots", "/api/tour-spots/{id}/reviews", "/api/users/{userId}/bookmarks"]
    {
        let page = &document["paths"][path]["get"]["responses"]["200"];
        assert_eq!(page["headers"].as_object().unwrap().len(), 5, "{path}");
        assert_eq!(page["content"]["application/json"]["schema"]["type"], "array");
    }
}
