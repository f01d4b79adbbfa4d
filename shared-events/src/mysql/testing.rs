//! Databases for tests, on the server of the test bed.

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use uuid::Uuid;

use super::MysqlUrl;

/// The variable with the server's URL.
pub const VARIABLE: &str = "TOURIN_MYSQL_URL";

/// A separate database for one test, on the server that [`VARIABLE`] names.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    url: MysqlUrl,
}

impl TestDatabase {
    /// Creates an empty database.
    ///
    /// # Panics
    /// When there is no server: no test is skipped silently.
    pub async fn create() -> Self {
        let name = format!("tourin_test_{}", Uuid::now_v7().simple());
        execute(format!("CREATE DATABASE {name} CHARACTER SET utf8mb4")).await;
        let url = with_database(&server_url(), &name).parse().expect("checked before");
        Self { name, url }
    }

    /// Its URL.
    pub fn url(&self) -> &MysqlUrl {
        &self.url
    }

    /// Its URL if the server were at `authority` (`HOST:PORT`); for a proxy in front of it. Without TLS unless the server's
    /// URL has parameters, because MySQL, unlike the test bed's MariaDB, would encrypt what the proxy looks for.
    ///
    /// # Panics
    /// When the server's address names no host.
    pub fn url_through(&self, authority: &str) -> MysqlUrl {
        let url = with_database(&server_url(), &self.name);
        let (before, rest) = url.split_once("://").expect("checked before");
        let (place, path) = rest.split_once('/').expect("a database is named");
        let user = place.rsplit_once('@').map(|(user, _)| format!("{user}@")).unwrap_or_default();
        // MySQL takes a password without TLS from a user who has logged in by TLS before, as `create` does.
        let plaintext = if path.contains('?') { "" } else { "?ssl-mode=DISABLED" };
        format!("{before}://{user}{authority}/{path}{plaintext}").parse().expect("HOST:PORT")
    }

    /// The host and port of the server itself.
    pub fn authority() -> String {
        let url: MysqlUrl = server_url().parse().expect("checked before");
        format!("{}:{}", url.options().get_host(), url.options().get_port())
    }

    /// Removes it. A test that fails leaves its database behind.
    pub async fn remove(self) {
        execute(format!("DROP DATABASE {}", self.name)).await;
    }
}

fn server_url() -> String {
    let url = std::env::var(VARIABLE).unwrap_or_default();
    assert!(
        !url.trim().is_empty(),
        "{VARIABLE} is not set: run it by `deploy/testbed.sh run -- cargo test ...`"
    );
    let valid = url.parse::<MysqlUrl>().is_ok();
    assert!(valid, "{VARIABLE} must be mysql://USER:PASSWORD@HOST:PORT/DATABASE");
    url
}

/// The same server, user and parameters, another database.
fn with_database(url: &str, name: &str) -> String {
    let (url, parameters) = match url.split_once('?') {
        Some((url, parameters)) => (url, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let server = url.rsplit_once('/').map_or(url, |(server, _)| server);
    format!("{server}/{name}{parameters}")
}

async fn execute(sql: String) {
    // The one database that every server has and every user may use.
    let url = with_database(&server_url(), "information_schema");
    let mut connection = MySqlConnection::connect(&url).await.expect("the test bed's server");
    connection.execute(AssertSqlSafe(sql)).await.expect("rights to make databases");
    connection.close().await.expect("closing");
}
