//! Sessions that end, and the gateways that are to refuse them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::mesh::Mesh;

const PASSWORD: &str = "Tour1n!pass";
/// Between two requests of one watcher.
const PAUSE: Duration = Duration::from_micros(500);
/// How long a gateway may go on serving an ended session before the run fails.
const GIVE_UP: Duration = Duration::from_secs(10);

/// How a session ends.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    LogOut,
    LogOutEverywhere,
    PasswordChange,
    Deletion,
}

impl Kind {
    pub const ALL: [Self; 4] =
        [Self::LogOut, Self::LogOutEverywhere, Self::PasswordChange, Self::Deletion];

    pub fn name(self) -> &'static str {
        match self {
            Self::LogOut => "log-out",
            Self::LogOutEverywhere => "log-out everywhere",
            Self::PasswordChange => "password change",
            Self::Deletion => "deletion",
        }
    }

    fn call(self) -> (&'static str, Value) {
        match self {
            Self::LogOut => ("logout", json!({})),
            Self::LogOutEverywhere => ("logout?everywhere=true", json!({})),
            Self::PasswordChange => {
                let body = json!({"oldPassword": PASSWORD, "newPassword": "Tour2n!pass"});
                ("update-password", body)
            }
            Self::Deletion => ("delete-account", json!({"password": PASSWORD})),
        }
    }
}

/// A member.
pub struct Member {
    id: String,
}

impl Member {
    pub async fn sign_up(mesh: &Mesh, at: usize) -> anyhow::Result<Self> {
        // 8 to 17 characters, a letter first.
        let unique = Uuid::now_v7().simple().to_string();
        let id = format!("b{}", &unique[unique.len() - 14..]);
        let account = json!({
            "id": id, "password": PASSWORD, "name": "Bench Mark", "email": "bench@example.com",
        });
        let answer = mesh.post(at, "signup", None, &account).await?;
        answer.error_for_status().context("signing up")?;
        Ok(Self { id })
    }

    /// An access token of a new session.
    pub async fn log_in(&self, mesh: &Mesh, at: usize) -> anyhow::Result<String> {
        let login = json!({"id": self.id, "password": PASSWORD});
        let answer = mesh.post(at, "login", None, &login).await?;
        let tokens: Value = answer.error_for_status().context("logging in")?.json().await?;
        Ok(tokens["accessToken"].as_str().context("an access token")?.to_owned())
    }
}

/// Ends one session, or all of a member, at gateway `number`; the times until each other gateway refuses
/// the member's session.
pub async fn measure(mesh: &Mesh, kind: Kind, number: usize) -> anyhow::Result<Vec<Duration>> {
    let member = Member::sign_up(mesh, number).await?;
    let ending = member.log_in(mesh, number).await?;
    let watched = match kind {
        Kind::LogOut => ending.clone(),
        // Another session of the member, of which the gateway that is asked learns as the others do.
        _ => member.log_in(mesh, number + 1).await?,
    };
    let at = number % mesh.count();
    let others: Vec<_> = (0..mesh.count()).filter(|other| *other != at).collect();
    let mut serving = Vec::new();
    let mut watching = Vec::new();
    for other in others {
        let (begun, served) = oneshot::channel();
        serving.push(served);
        watching.push(until_refused(mesh, other, &watched, begun));
    }
    let ended = async {
        // Each gateway has verified and served the session.
        try_join_all(serving).await.context("a gateway does not serve an open session")?;
        let (path, body) = kind.call();
        let answer = mesh.post(at, path, Some(&ending), &body).await?;
        ensure!(answer.status() == 204, "{}: {}", kind.name(), answer.status());
        Ok(Instant::now())
    };
    let (ended, refused) = tokio::try_join!(ended, try_join_all(watching))?;
    Ok(refused.into_iter().map(|at| at.saturating_duration_since(ended)).collect())
}

/// When a gateway's first refusal has been received.
async fn until_refused(
    mesh: &Mesh,
    gateway: usize,
    token: &str,
    begun: oneshot::Sender<()>,
) -> anyhow::Result<Instant> {
    ensure!(mesh.is_let_in(gateway, token).await?, "an open session is refused");
    // The receiver is there as long as this future is polled.
    let _told = begun.send(());
    let began = Instant::now();
    while mesh.is_let_in(gateway, token).await? {
        ensure!(began.elapsed() < GIVE_UP, "gateway {gateway} goes on serving an ended session");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Instant::now())
}
