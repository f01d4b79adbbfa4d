//! Connections to servers without TLS.
//!
//! A password, and all that a server keeps, crosses such a connection readable. So a URL without TLS is refused at
//! the start unless its host is this machine, or `--allow-plaintext` permits it. The rule is for every argument of
//! every program, by the URL's scheme, so that no flag of a server can be forgotten. URLs of `http` are none of its
//! business: neither spans nor the mesh's own calls carry a password of a server.

use std::borrow::Cow;
use std::net::IpAddr;

use clap::{ArgMatches, Args, Command};

use super::ConfigError;

const ALLOW: &str = "allow-plaintext";

/// Permission to connect without TLS, for every command with the URL of a server.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaintextSettings {
    /// Allow connections without TLS to servers on other machines: redis://, amqp://, mongodb:// without
    /// tls=true, mysql:// with ssl-mode=PREFERRED or DISABLED. For private networks alone, because
    /// passwords and data cross them readable
    #[arg(long, env = "TOURIN_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
}

/// Refuses URLs without TLS to servers on other machines, unless the command is allowed to use them.
pub(super) fn refuse(command: &Command, matches: &ArgMatches) -> Result<(), ConfigError> {
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        refuse(command, matches)?;
    }
    let permission = command.get_arguments().find(|arg| arg.get_long() == Some(ALLOW));
    if permission.is_some_and(|arg| matches.get_flag(arg.get_id().as_str())) {
        return Ok(());
    }
    for argument in command.get_arguments() {
        let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten();
        let mut texts = values.into_iter().flatten().filter_map(|value| value.to_str());
        if let Some((host, remedy)) = texts.find_map(readable) {
            let flag = argument.get_long().unwrap_or_default();
            return Err(ConfigError::Plaintext(format!(
                "--{flag}: the connection to {host} has no TLS, and {host} is not this machine: say {remedy}, or \
                 allow it by --{ALLOW} (TOURIN_ALLOW_PLAINTEXT) where the network is private"
            )));
        }
    }
    Ok(())
}

/// A MySQL's URL with `ssl-mode=VERIFY_IDENTITY` if it is on another machine and says nothing. Other URLs are as they
/// were.
pub(super) fn with_ssl_mode(url: &str) -> Cow<'_, str> {
    match Server::of(url) {
        Some(server) if server.is_mysql() && server.ssl_mode().is_none() => {
            let Some(_elsewhere) = server.other_machine() else { return url.into() };
            let (url, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
            let separator = if url.contains('?') { '&' } else { '?' };
            format!("{url}{separator}ssl-mode=VERIFY_IDENTITY{fragment}").into()
        }
        _ => url.into(),
    }
}

/// The other machine to which a URL connects without TLS, and what to use instead.
fn readable(url: &str) -> Option<(&str, &'static str)> {
    let server = Server::of(url)?;
    let host = server.other_machine()?;
    let (is_readable, remedy) = match &*server.scheme {
        "redis" | "valkey" => (true, "rediss://"),
        "amqp" => (true, "amqps://"),
        "mongodb" => (server.tls() != Some(true), "tls=true"),
        "mongodb+srv" => (server.tls() == Some(false), "tls=true"),
        _ if server.is_mysql() => {
            let ssl_mode = server.ssl_mode().unwrap_or_default();
            let modes = ["disabled", "preferred"];
            (modes.contains(&ssl_mode.as_str()), "ssl-mode=VERIFY_IDENTITY")
        }
        _ => return None,
    };
    is_readable.then_some((host, remedy))
}

/// The parts of a server's URL that decide.
struct Server<'a> {
    scheme: String,
    authority: &'a str,
    query: &'a str,
}

impl<'a> Server<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.trim().split_once("://")?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = place.split('/').next().unwrap_or_default();
        Some(Self { scheme: scheme.to_ascii_lowercase(), authority, query })
    }

    fn is_mysql(&self) -> bool {
        matches!(&*self.scheme, "mysql" | "mariadb")
    }

    /// The value of the last parameter with one of these names, in small letters.
    fn parameter(&self, names: &[&str]) -> Option<String> {
        form_urlencoded::parse(self.query.as_bytes())
            .filter(|(name, _)| names.contains(&&*name.to_ascii_lowercase()))
            .last()
            .map(|(_, value)| value.to_ascii_lowercase())
    }

    fn ssl_mode(&self) -> Option<String> {
        self.parameter(&["ssl-mode", "sslmode"])
    }

    fn tls(&self) -> Option<bool> {
        self.parameter(&["tls", "ssl"]).map(|value| value == "true")
    }

    /// The first host that is not this machine.
    fn other_machine(&self) -> Option<&'a str> {
        if self.is_mysql() && self.parameter(&["socket"]).is_some() {
            return None;
        }
        let hosts = self.authority.rsplit('@').next().unwrap_or_default();
        hosts.split(',').map(without_port).find(|host| !is_this_machine(host))
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_this_machine(host: &str) -> bool {
    // Clients take no host for this machine, and MongoDB's driver an encoded path for a socket.
    host.is_empty()
        || host.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f"))
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::try_parse_from;
    use super::*;

    #[test]
    fn urls_without_tls_to_other_machines_are_readable() {
        for (url, host) in [
            ("redis://store.example", "store.example"),
            ("REDIS://user:p@10.0.0.1:6379/1", "10.0.0.1"),
            ("valkey://[2001:db8::1]:6379", "2001:db8::1"),
            ("redis://localhost:word@store.example", "store.example"),
            ("redis://localhost.example", "localhost.example"),
            ("redis://0.0.0.0", "0.0.0.0"),
            ("amqp://core:word@bus.example:5672/%2f", "bus.example"),
            ("amqp://bus.example?heartbeat=3", "bus.example"),
            ("mongodb://127.0.0.1:1,store.example:2/?replicaSet=x", "store.example"),
            ("mongodb://store.example/?tls=false", "store.example"),
            ("mongodb+srv://store.example/?ssl=false", "store.example"),
            ("mysql://core:word@db.example/core?ssl-mode=DISABLED", "db.example"),
            ("mysql://core@db.example/core?sslmode=preferred", "db.example"),
            ("mariadb://core@db.example/core?ssl-mode=REQUIRED&ssl-mode=DISABLED", "db.example"),
        ] {
            assert_eq!(readable(url).map(|(host, _)| host), Some(host), "{url}");
        }
    }

    #[test]
    fn urls_with_tls_or_to_this_machine_are_not() {
        for url in [
            "rediss://store.example",
            "amqps://bus.example/%2f",
            "mongodb://store.example/?TLS=true",
            "mongodb://store.example/db?ssl=true",
            "mongodb+srv://store.example",
            "mysql://db.example/core",
            "mysql://db.example/core?ssl-mode=REQUIRED",
            "mysql://db.example/core?ssl-mode=VERIFY_CA",
            "mysql://db.example/core?ssl-mode=DISABLED&socket=/run/mysqld.sock",
            "mysql://127.0.0.1/core?ssl-mode=DISABLED",
            "redis://127.0.0.1:6379",
            "redis://user:p@127.8.9.1/0",
            "redis://[::1]:6379",
            "redis://[::ffff:127.0.0.1]",
            "redis://LocalHost",
            "redis:///1",
            "redis+unix:///run/redis.sock",
            "unix:///run/redis.sock",
            "amqp:///%2f",
            "mongodb://%2Frun%2Fmongodb.sock",
            "http://zipkin.example:9411",
            "a text",
            "",
        ] {
            assert!(readable(url).is_none(), "{url}");
        }
    }

    #[test]
    fn the_identity_of_a_mysql_on_another_machine_is_verified_unless_its_url_says_otherwise() {
        for (url, verified) in [
            ("mysql://a:b@db.example/core", "mysql://a:b@db.example/core?ssl-mode=VERIFY_IDENTITY"),
            ("mysql://10.0.0.1/c?ssl-ca=f", "mysql://10.0.0.1/c?ssl-ca=f&ssl-mode=VERIFY_IDENTITY"),
            ("mysql://db/c#x", "mysql://db/c?ssl-mode=VERIFY_IDENTITY#x"),
        ] {
            assert_eq!(with_ssl_mode(url), verified);
        }
        for url in [
            "mysql://localhost/core",
            "mysql://[::1]:3306/core",
            "mysql://db.example/core?ssl-mode=REQUIRED",
            "mysql://db.example/core?socket=/run/mysqld.sock",
            "redis://store.example",
            "a text",
        ] {
            assert_eq!(with_ssl_mode(url), url);
        }
    }

    #[derive(Debug, Parser)]
    enum Program {
        Serve {
            #[arg(long)]
            redis_url: Option<String>,
            #[arg(long, value_delimiter = ',')]
            others: Vec<String>,
            #[command(flatten)]
            plaintext: PlaintextSettings,
        },
        /// A command that somebody forgot to give the permission's flag.
        Show {
            #[arg(long)]
            amqp_url: String,
        },
    }

    fn parse(line: &str) -> Result<Program, String> {
        let arguments: Vec<_> = line.split(' ').map(Into::into).collect();
        try_parse_from(&arguments, |_| false, None).map_err(|error| error.to_string())
    }

    #[test]
    fn a_readable_connection_is_refused_with_its_flag_and_the_ways_out() {
        let error = parse("program serve --redis-url redis://user:hunter2@there/0").unwrap_err();
        for part in
            ["--redis-url", "there", "rediss://", "--allow-plaintext", "TOURIN_ALLOW_PLAINTEXT"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        assert!(parse("program serve --others redis://localhost,amqp://there").is_err());
        assert!(parse("program show --amqp-url amqp://there").is_err());
    }

    #[test]
    fn a_readable_connection_is_allowed_by_its_flag() {
        for line in [
            "program serve --redis-url redis://there --allow-plaintext",
            "program serve --redis-url rediss://there",
            "program serve --redis-url redis://localhost",
            "program show --amqp-url amqps://there",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }
}
