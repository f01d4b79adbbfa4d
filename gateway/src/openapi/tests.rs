use super::*;

fn reference(name: &str) -> Value {
    json!({"200": {"description": "ok", "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}}}})
}

#[test]
fn parts_become_one_document() {
    let routes = RouteTable::parse(crate::routes::BUILT_IN).unwrap();
    let core = json!({
        "paths": {
            "/api/users/{userId}": {"get": {"responses": reference("User")}, "delete": {"responses": {}}},
            "/api/auth/me": {"get": {"responses": reference("User")}},
            "/internal/events": {"get": {"responses": {}}},
            "/api/recommendations/trend": {"get": {"responses": {}}},
        },
        "components": {"schemas": {"User": {"type": "object"}, "ErrorBody": ErrorBody::schema()}},
        "tags": [{"name": "members"}],
    });
    let recommendation = json!({
        "paths": {"/api/recommendations/trend": {"get": {"responses": reference("User")}}},
        "components": {"schemas": {"User": {"type": "string"}, "ErrorBody": ErrorBody::schema()}},
        "tags": [{"name": "members"}],
    });
    let parts =
        BTreeMap::from([("core".to_owned(), core), ("recommendation".to_owned(), recommendation)]);
    let merged = merge(&parts, &routes);
    let paths: Vec<_> = merged["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        paths,
        ["/api/auth/me", "/api/openapi.json", "/api/recommendations/trend", "/api/users/{userId}"]
    );
    assert!(merged["paths"]["/api/users/{userId}"].get("delete").is_none(), "not routed");
    assert!(merged["paths"]["/api/users/{userId}"]["get"].get("security").is_none());
    assert!(merged["paths"]["/api/auth/me"]["get"]["security"].is_array());
    let trend = &merged["paths"]["/api/recommendations/trend"]["get"]["responses"];
    let schema = "/content/application~1json/schema/$ref";
    assert_eq!(trend["200"].pointer(schema).unwrap(), "#/components/schemas/recommendation.User");
    assert_eq!(trend["default"].pointer(schema).unwrap(), "#/components/schemas/ErrorBody");
    let errors = &merged["components"]["schemas"]["ErrorBody"]["properties"];
    assert!(errors["traceId"].is_object() && errors["error"].is_object(), "{errors}");
    for status in ["200", "default"] {
        for name in ["X-Request-Id", "traceresponse"] {
            let header = &trend[status]["headers"][name]["$ref"];
            assert_eq!(header, &json!(format!("#/components/headers/{name}")));
            assert!(merged["components"]["headers"][name].is_object());
        }
    }
    assert_eq!(merged["components"]["schemas"]["User"]["type"], "object");
    assert_eq!(merged["components"]["schemas"]["recommendation.User"]["type"], "string");
    assert!(merged["components"]["schemas"].get("recommendation.ErrorBody").is_none());
    assert_eq!(merged["tags"].as_array().unwrap().len(), 1);
}

#[test]
fn a_known_document_is_not_sent_again() {
    let api = ApiDescription::default();
    let asked = |tags: &[&[u8]]| -> Answer {
        let line = |tags: &&[u8]| (IF_NONE_MATCH, HeaderValue::from_bytes(tags).unwrap());
        api.answer(&tags.iter().map(line).collect())
    };
    assert_eq!(asked(&[]).status, StatusCode::SERVICE_UNAVAILABLE);
    api.publish(&json!({"openapi": "3.1.0"}));
    let first = asked(&[]);
    let (_, etag) = first.headers.iter().find(|(name, _)| *name == ETAG).unwrap();
    assert_eq!(first.status, StatusCode::OK);
    let weak = [b"W/", etag.as_bytes()].concat();
    for known in [&[etag.as_bytes()][..], &[b"\"other\", \"\xff\"", &weak], &[b"*"]] {
        assert_eq!(asked(known).status, StatusCode::NOT_MODIFIED, "{known:?}");
    }
    assert_eq!(asked(&[b"\"other\", x"]).status, StatusCode::OK);
}

/// A part comes from another process, which may be of another version.
#[test]
fn parts_of_another_form_do_no_harm() {
    let routes = RouteTable::parse(crate::routes::BUILT_IN).unwrap();
    for part in [
        json!("text"),
        json!({"paths": []}),
        json!({"paths": {"/api/auth/me": "x"}}),
        json!({"paths": {"/api/auth/me": {"get": "x"}}}),
        json!({"paths": {"/api/auth/me": {"get": {"responses": "x"}}}}),
        json!({"paths": {"/api/auth/me": {"get": {"responses": {"200": "x"}}}}}),
        json!({"paths": {"/api/auth/me": {"get": {"responses": {"200": {"headers": 1}}}}}}),
        json!({"paths": {}, "components": {"schemas": 1}, "tags": 1}),
    ] {
        let merged = merge(&BTreeMap::from([("core".to_owned(), part)]), &routes);
        assert!(merged["paths"]["/api/openapi.json"].is_object());
    }
}
