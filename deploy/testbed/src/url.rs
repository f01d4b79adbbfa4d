//! The host and port in a server's URL.

use std::ops::Range;

/// `HOST:PORT` of a server's URL, with its scheme's default port if it has none.
///
/// # Panics
///
/// If it is not a URL, or has neither a port nor the scheme of one of the bed's servers.
pub fn authority(url: &str) -> String {
    let host = &url[place(url)];
    if host.contains(':') {
        return host.to_owned();
    }
    let port = match url.split(':').next() {
        Some("mysql") => 3306,
        Some("redis") => 6379,
        Some("mongodb") => 27017,
        Some("amqp") => 5672,
        scheme => panic!("no default port for {scheme:?}"),
    };
    format!("{host}:{port}")
}

/// The URL with another `HOST:PORT`.
///
/// # Panics
///
/// If it is not a URL.
pub fn with_authority(url: &str, authority: &str) -> String {
    let mut url = url.to_owned();
    let place = place(&url);
    url.replace_range(place, authority);
    url
}

fn place(url: &str) -> Range<usize> {
    let start = url.find("://").expect("a URL has a scheme") + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_the_server_is() {
        for (url, place) in [
            ("amqp://user:p@127.0.0.1:25686/%2f", "127.0.0.1:25686"),
            ("amqp://localhost", "localhost:5672"),
            ("mongodb://u:p@there:27463/?authSource=admin", "there:27463"),
            ("mongodb://there?directConnection=true", "there:27017"),
            ("redis://default:a%40b@[::1]:1/0", "[::1]:1"),
            ("mysql://there/tourin", "there:3306"),
        ] {
            assert_eq!(authority(url), place, "{url}");
        }
    }

    #[test]
    fn all_else_of_a_url_stays() {
        let moved = with_authority("redis://default:pass@127.0.0.1:6379/0?x=1", "127.0.0.1:1");
        assert_eq!(moved, "redis://default:pass@127.0.0.1:1/0?x=1");
        assert_eq!(with_authority("amqp://there", "here:2"), "amqp://here:2");
    }
}
