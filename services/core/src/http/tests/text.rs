//! Unicode forms of typed text, and invisible characters.

use http::StatusCode;
use serde_json::{Map, Value, json};
use tourin_chassis::identity::Subject;
use unicode_normalization::UnicodeNormalization as _;

use super::refused;
use super::spots::with_spots;
use crate::testing::{Answer, TestCore};

/// A Unicode form of text, such as that of a macOS keyboard.
type Form = fn(&str) -> String;

fn composed(text: &str) -> String {
    text.nfc().collect()
}

fn apart(text: &str) -> String {
    text.nfd().collect()
}

/// The text typed into a field, a parameter or a path segment of this name.
fn typed(name: &str) -> &str {
    match name {
        "id" => "hana12345",
        "password" | "oldPassword" | "newPassword" => "한글 바다 1!a",
        "name" => "홍길동 Ångström",
        "email" => "hana@example.com",
        "content" => "좋은 한옥, 좋은 café",
        "userId" => "hana12345",
        "tourSpotId" | "tourSpotReviewIds" => "1",
        "query" => "경복궁",
        "tags" => "역사,건축/조형",
        "customFilters" => "bookmarked",
        "sort" => "name-asc",
        // No spot or member has this name.
        _ => "한글é",
    }
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// One call of the OpenAPI document, with all texts in one form.
struct Call {
    method: String,
    path: String,
    query: String,
    body: Option<Value>,
}

impl Call {
    fn of(document: &Value, path: &str, method: &str, form: Form, odd_path: bool) -> Self {
        let operation = &document["paths"][path][method];
        let mut uri = path.to_owned();
        let mut query = Vec::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            let schema = parameter["schema"].to_string();
            if parameter["in"] == "path" {
                let id = if name == "userId" { typed(name) } else { "1" };
                let text = if odd_path { "한글é" } else { id };
                uri = uri.replace(&format!("{{{name}}}"), &encoded(&form(text)));
            } else if !schema.contains("integer") && !schema.contains("boolean") {
                let number = schema.contains(r#""number""#);
                let text = if number { "37".to_owned() } else { form(typed(name)) };
                query.push(format!("{name}={}", encoded(&text)));
            }
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let schema = schema["oneOf"].as_array().map_or(schema, |parts| {
            parts.iter().find(|part| part["$ref"].is_string()).expect("a schema of its own")
        });
        let fields = schema["$ref"].as_str().map(|target| {
            let schema = document.pointer(target.trim_start_matches('#')).unwrap();
            let mut fields = Map::new();
            for (name, field) in schema["properties"].as_object().unwrap() {
                let text = field["type"].to_string().contains("string");
                let value = if text { json!(form(typed(name))) } else { json!(true) };
                fields.insert(name.clone(), value);
            }
            Value::Object(fields)
        });
        Self { method: method.to_uppercase(), path: uri, query: query.join("&"), body: fields }
    }

    async fn send(self, core: &TestCore, subject: Option<&Subject>) -> Answer {
        let uri = format!("{}?{}", self.path, self.query);
        core.call(&self.method, &uri, subject, self.body).await
    }
}

/// The response, without the values that differ in every call.
fn comparable(answer: &Answer) -> (StatusCode, Value) {
    let mut body = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
    if let Some(fields) = body.as_object_mut() {
        for own in ["traceId", "accessToken", "refreshToken"] {
            fields.remove(own);
        }
    }
    (answer.status, body)
}

/// Makes all calls with one form, from the sign-up to the deletion of the account.
async fn walk(form: Form) -> Vec<(String, StatusCode, Value)> {
    let core = with_spots().await;
    let document = core.call("GET", "/internal/openapi.json", None, None).await.json();
    let account = json!({
        "id": typed("id"), "password": form(typed("password")), "name": form(typed("name")),
        "email": typed("email"),
    });
    let answer = core.call("POST", "/api/auth/signup", None, Some(account.clone())).await;
    let mut said_so_far = vec![("sign up".to_owned(), answer.status, comparable(&answer).1)];
    let log_in = async || {
        let answer = core.call("POST", "/api/auth/login", None, Some(account.clone())).await;
        let claims = crate::testing::claims(answer.json()["accessToken"].as_str().unwrap());
        Subject::Member { id: claims.sub, session: claims.sid, roles: claims.roles }
    };
    let mut calls: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        calls.extend(item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())));
    }
    // Writes first, so that reads find something; deletions last.
    calls.sort_by_key(|(path, method)| {
        let writes = ["post", "put"].contains(&method.as_str());
        let ends = method == "delete"
            || ["delete-account", "update-password", "logout"]
                .iter()
                .any(|end| path.ends_with(end));
        (ends, path.ends_with("delete-account"), path.ends_with("password"), !writes, path.clone())
    });
    for (path, method) in &calls {
        for odd_path in [true, false] {
            let subject = log_in().await;
            let call = Call::of(&document, path, method, form, odd_path);
            let answer = call.send(&core, Some(&subject)).await;
            let (status, body) = comparable(&answer);
            said_so_far.push((format!("{method} {path} {odd_path}"), status, body));
            if path.ends_with("update-password") || path.ends_with("delete-account") {
                break;
            }
        }
    }
    said_so_far
}

#[tokio::test]
async fn every_call_takes_texts_apart_for_the_same_as_composed_ones() {
    let one = walk(composed).await;
    let other = walk(apart).await;
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other);
        assert!(!one.1.is_server_error(), "{one:?}");
    }
    let of = |call: &str| {
        one.iter().find(|(name, ..)| name == call).unwrap_or_else(|| panic!("{call}: {one:#?}"))
    };
    for (call, status) in [
        ("sign up", 201),
        ("post /api/auth/login false", 200),
        ("post /api/auth/update-profile false", 200),
        ("post /api/tour-spots/{id}/reviews false", 201),
        ("post /api/users/{userId}/bookmarks false", 201),
        ("get /api/tour-spots false", 200),
        ("get /api/tour-spots/map false", 200),
        ("get /api/users true", 200),
        ("get /api/users/{userId} true", 404),
        ("post /api/auth/update-password true", 204),
        ("post /api/auth/delete-account true", 204),
    ] {
        assert_eq!(of(call).1.as_u16(), status, "{:?}", of(call));
    }
    assert_eq!(of("sign up").2["name"], typed("name"));
    assert_eq!(of("post /api/tour-spots/{id}/reviews false").2["content"], typed("content"));
    assert_eq!(of("get /api/tour-spots false").2[0]["name"], typed("query"));
}

async fn sign_up(core: &TestCore, password: &str, name: &str) -> Answer {
    let account = json!({
        "id": "hana12345", "password": password, "name": name, "email": "hana@example.com",
    });
    core.call("POST", "/api/auth/signup", None, Some(account)).await
}

#[tokio::test]
async fn a_member_with_a_decomposed_name_is_found_by_either_form() {
    let core = TestCore::start().await;
    let answer = sign_up(&core, crate::testing::PASSWORD, &apart("홍길동")).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert_eq!(answer.json()["name"], "홍길동");
    for query in ["홍길동", &apart("길동"), "홍\u{200B}길\u{3164}동", "HANA\u{2060}1"] {
        let path = format!("/api/users?query={}", encoded(query));
        let found = core.call("GET", &path, None, None).await.json();
        assert_eq!(found, json!([{"id": "hana12345", "name": "홍길동"}]), "{query:?}");
    }
    for none in ["\u{3164}", "\u{200B} \u{2800}"] {
        let path = format!("/api/users?query={}", encoded(none));
        let found = core.call("GET", &path, None, None).await.json();
        assert_eq!(found.as_array().unwrap().len(), 1, "a blank query filters nothing: {none:?}");
    }
}

#[tokio::test]
async fn a_password_is_the_same_on_every_keyboard() {
    let core = TestCore::start().await;
    assert_eq!(
        sign_up(&core, &apart("비밀 번호1!a바다"), "홍길동").await.status,
        StatusCode::CREATED
    );
    for (password, status) in [
        ("비밀 번호1!a바다".to_owned(), 200),
        (apart("비밀 번호1!a바다"), 200),
        ("비밀\u{A0}번호1!a바다".to_owned(), 200),
        ("비밀번호1!a바다".to_owned(), 401),
        ("비밀 번호1!a바다\u{200B}".to_owned(), 401),
    ] {
        let body = json!({"id": "hana12345", "password": password});
        let answer = core.call("POST", "/api/auth/login", None, Some(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{password:?} {answer:?}");
    }
}

#[tokio::test]
async fn a_hash_of_a_decomposed_password_still_logs_in_and_is_renewed() {
    let core = TestCore::start().await;
    let (old, new) = (apart("비밀 번호1!a바다"), "비밀 번호1!a바다");
    assert_eq!(sign_up(&core, new, "홍길동").await.status, StatusCode::CREATED);
    // As an older version hashed it.
    let policy = crate::app::passwords::HashingPolicy {
        memory_kib: 16,
        iterations: 1,
        ..Default::default()
    };
    let hash = crate::app::passwords::Passwords::new(&policy).unwrap().hash_as_typed(&old);
    sqlx::query("UPDATE members SET password_hash = ?1")
        .bind(hash.unwrap().0)
        .execute(core.store.db.writer())
        .await
        .unwrap();
    for (password, status) in [(new, 401), (old.as_str(), 200), (new, 200), (old.as_str(), 200)] {
        let body = json!({"id": "hana12345", "password": password});
        let answer = core.call("POST", "/api/auth/login", None, Some(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{password:?} {answer:?}");
    }
}

#[tokio::test]
async fn an_invisible_text_is_no_review_no_name_and_no_query() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let reviews = "/api/tour-spots/1/reviews";
    let write = |content: &str| {
        let body = json!({"userId": "hana12345", "content": content});
        core.call("POST", reviews, Some(&hana), Some(body))
    };
    let unseen = [
        "\u{3164}",
        "\u{115F}\u{1160}",
        "\u{FFA0}",
        "\u{2800}",
        "\u{AD}",
        "\u{200B}\u{200D}\u{FEFF}",
        "\u{FE0F}",
        "\u{E0020}\u{E007F}",
        "\u{202E}\u{2066}",
        "\0\u{7}\u{7F}\u{85}",
        " \u{3164}\n",
    ];
    for content in unseen {
        refused(&write(content).await, 422, "invalid", "visible");
        let name = json!({"name": content});
        let answer = core.call("POST", "/api/auth/update-profile", Some(&hana), Some(name)).await;
        refused(&answer, 422, "invalid", "`name` must be");
    }
    for query in &unseen[..9] {
        let path = format!("/api/tour-spots?query={}", encoded(query));
        let all = core.call("GET", &path, None, None).await;
        assert_eq!(all.header("x-pagination-total-item"), "5", "{query:?}");
    }
    let answer = write("첫\u{3164}줄\r\n둘째\t줄\u{0}\u{1B}\r👩\u{200D}🚀").await;
    assert_eq!(answer.json()["content"], "첫\u{3164}줄\n둘째 줄\n👩\u{200D}🚀");
    let most = write(&apart(&"각".repeat(500))).await;
    assert_eq!(most.status, StatusCode::CREATED, "{most:?}");
    refused(&write(&apart(&"각".repeat(501))).await, 422, "invalid", "1 to 500 characters");
    let named = json!({"name": "\u{202E}홍\u{200D}길동\u{FEFF}"});
    let answer = core.call("POST", "/api/auth/update-profile", Some(&hana), Some(named)).await;
    assert_eq!(answer.json()["name"], "홍길동");
}

#[tokio::test]
async fn tags_and_filters_go_by_their_old_names_too() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let bookmark = Some(json!({"tourSpotId": "3"}));
    core.call("POST", "/api/users/hana12345/bookmarks", Some(&hana), bookmark).await;
    let edges = "minLat=33&minLng=124&maxLat=39&maxLng=132";
    let found = async |path: String| {
        let answer = core.call("GET", &path, Some(&hana), None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    };
    for tag in crate::domain::tag::Tag::ALL {
        let old = tag.old_name();
        for (one, other) in [
            (tag.name().to_owned(), old.to_owned()),
            (tag.name().to_owned(), old.to_lowercase()),
            (format!("{},자연", tag.name()), format!("{old},자연")),
            (format!("{},문화", tag.name()), format!("문화,{old},{}", apart(tag.name()))),
        ] {
            let (one, other) = (encoded(&one), encoded(&other));
            let list = found(format!("/api/tour-spots?tags={one}")).await;
            assert_eq!(found(format!("/api/tour-spots?tags={other}")).await, list, "{other}");
            let map = found(format!("/api/tour-spots/map?{edges}&tags={one}")).await;
            assert_eq!(found(format!("/api/tour-spots/map?{edges}&tags={other}")).await, map);
        }
    }
    let architecture = found("/api/tour-spots?tags=ARCHITECTURE".to_owned()).await;
    assert_eq!(architecture[0]["tags"], json!(["역사", "건축/조형"]), "answers keep the names");
    for path in ["/api/tour-spots?".to_owned(), format!("/api/tour-spots/map?{edges}&")] {
        let old = found(format!("{path}customFilters=bookmark")).await;
        assert_eq!(old, found(format!("{path}customFilters=bookmarked,bookmark")).await);
        assert_eq!(old[0]["id"], "3");
        let stranger = core.call("GET", &format!("{path}customFilters=bookmark"), None, None).await;
        refused(&stranger, 401, "unauthenticated", "session");
    }
    let unknown = core.call("GET", "/api/tour-spots?tags=SEA", None, None).await;
    refused(&unknown, 422, "invalid", "자연 (NATURE)");
}
