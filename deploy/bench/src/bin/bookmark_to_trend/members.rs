//! Members who bookmark.

use anyhow::Context;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::mesh::Mesh;

const PASSWORD: &str = "Tour1n!pass";

#[derive(Clone)]
pub struct Member {
    http: Client,
    url: String,
    token: String,
}

/// Signs up and logs in `count` members.
pub async fn sign_up(mesh: &Mesh, count: usize) -> anyhow::Result<Vec<Member>> {
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let mut members = Vec::new();
    for number in 0..count {
        // 8 to 17 characters, a letter first.
        let id = format!("b{}{number:03}", &unique[unique.len() - 10..]);
        let account = json!({
            "id": id, "password": PASSWORD, "name": "Bench Mark", "email": "bench@example.com",
        });
        let post = |path: &str, body: &Value| {
            mesh.http.post(format!("{}/api/auth/{path}", mesh.url)).json(body).send()
        };
        post("signup", &account).await?.error_for_status().context("signing up")?;
        let login = json!({"id": id, "password": PASSWORD});
        let tokens: Value = post("login", &login).await?.error_for_status()?.json().await?;
        let token = tokens["accessToken"].as_str().context("an access token")?.to_owned();
        let url = format!("{}/api/users/{id}/bookmarks", mesh.url);
        members.push(Member { http: mesh.http.clone(), url, token });
    }
    Ok(members)
}

impl Member {
    /// Whether the bookmark was acknowledged.
    pub async fn bookmark(&self, spot: &str) -> bool {
        let body = json!({"tourSpotId": spot});
        let answer = self.http.post(&self.url).bearer_auth(&self.token).json(&body).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::CREATED)
    }
}
