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
    let session = json!([{"bearer": []}, {"cookie": []}]);
    assert_eq!(merged["paths"]["/api/users/{userId}"]["get"]["security"], json!([]));
    assert_eq!(merged["paths"]["/api/auth/me"]["get"]["security"], session);
    let trend = &merged["paths"]["/api/recommendations/trend"]["get"]["responses"];
    let schema = "/content/application~1json/schema/$ref";
    assert_eq!(trend["200"].pointer(schema).unwrap(), "#/components/schemas/recommendation.User");
    for (status, name) in
        [("401", "Unauthenticated"), ("503", "Unavailable"), ("default", "Failure")]
    {
        let refusal = format!("#/components/responses/{name}");
        assert_eq!(trend[status]["$ref"], refusal);
        let refusal = &merged["components"]["responses"][name];
        assert_eq!(refusal.pointer(schema).unwrap(), "#/components/schemas/ErrorBody");
        assert!(refusal["headers"]["Content-Language"].is_object(), "{refusal}");
    }
    assert!(trend.get("429").is_none(), "the route has no rate");
    let errors = &merged["components"]["schemas"]["ErrorBody"]["properties"];
    assert!(errors["traceId"].is_object() && errors["error"].is_object(), "{errors}");
    for name in ["X-Request-Id", "traceresponse", "Vary", "Cache-Control", "X-Content-Type-Options"]
    {
        let header = &trend["200"]["headers"][name]["$ref"];
        assert_eq!(header, &json!(format!("#/components/headers/{name}")));
        assert!(merged["components"]["headers"][name].is_object());
    }
    assert_eq!(merged["components"]["schemas"]["User"]["type"], "object");
    assert_eq!(merged["components"]["schemas"]["recommendation.User"]["type"], "string");
    assert!(merged["components"]["schemas"].get("recommendation.ErrorBody").is_none());
    assert_eq!(merged["tags"].as_array().unwrap().len(), 1);
}

#[test]
fn every_operation_documents_its_callers() {
    let routes = RouteTable::parse(crate::routes::BUILT_IN).unwrap();
    let optional = json!([{}, {"bearer": []}, {"cookie": []}]);
    let session = json!([{"bearer": []}, {"cookie": []}]);
    let core = json!({"paths": {
        "/api/tour-spots": {"get": {}},
        "/api/tour-spots/{id}": {"get": {"security": optional}},
        "/api/users": {"get": {"security": [{}]}},
        "/api/auth/me": {"get": {"security": []}},
        "/api/auth/login": {"post": {"responses": {"429": {"description": "wrong passwords"}}}},
        "/api/auth/reissue": {"post": {"responses": {"401": {
            "description": "refused", "headers": {"www-authenticate": {"schema": {"type": "string"}}},
        }}}},
    }});
    let merged = merge(&BTreeMap::from([("core".to_owned(), core)]), &routes);
    let call = |path: &str, method: &str| merged["paths"][path][method].clone();
    assert_eq!(call("/api/tour-spots", "get")["security"], optional, "by its route");
    assert_eq!(call("/api/tour-spots/{id}", "get")["security"], optional, "by its service");
    assert_eq!(call("/api/users", "get")["security"], json!([]));
    assert_eq!(call("/api/openapi.json", "get")["security"], json!([]));
    assert_eq!(call("/api/auth/me", "get")["security"], session, "by its route");
    assert_eq!(call("/api/users", "get")["responses"].get("403"), None);

    let log_in = &call("/api/auth/login", "post")["responses"];
    assert_eq!(log_in["429"]["description"], "wrong passwords", "the service knows best");
    assert!(log_in["429"]["headers"]["Retry-After"].is_object());
    assert_eq!(log_in.get("403"), None, "it leans on no cookie");
    let reissue = &call("/api/auth/reissue", "post")["responses"];
    assert_eq!(reissue["429"]["$ref"], "#/components/responses/RateLimited");
    assert_eq!(reissue["403"]["$ref"], "#/components/responses/Forbidden");
    let headers: Vec<_> = reissue["401"]["headers"].as_object().unwrap().keys().collect();
    assert_eq!(headers.iter().filter(|n| n.eq_ignore_ascii_case("www-authenticate")).count(), 1);
}

#[test]
fn a_known_document_is_not_sent_again() {
    let api = ApiDescription::default();
    let asked = |tags: &[&[u8]]| -> Response {
        let line = |tags: &&[u8]| (IF_NONE_MATCH, HeaderValue::from_bytes(tags).unwrap());
        api.response(&tags.iter().map(line).collect())
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
fn malformed_api_descriptions_are_skipped() {
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
