//! The URLs a member listens on and advertises: a scheme, a host, a port, nothing more.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    /// TLS over a unix socket.
    Unixs,
}

impl Scheme {
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }
}

/// Compares and hashes by its text, which is what member ids are made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// The whole, as shown to others.
    pub raw: String,
    pub scheme: Scheme,
    /// Without brackets; for unix sockets the path of the file. May be empty (`http://:2379`).
    pub host: String,
    /// 0 for unix sockets.
    pub port: u16,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

impl Url {
    /// The reasons are worded as etcd words them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let go_error = |reason: String| format!("parse {text:?}: {reason}");
        if text.chars().any(char::is_control) {
            return Err(go_error("net/url: invalid control character in URL".to_owned()));
        }
        let (scheme, rest) = split_scheme(text).map_err(go_error)?;
        let scheme = match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => {
                return Err(format!("URL scheme must be http, https, unix, or unixs: {text}"));
            }
        };
        if let Some(at) = rest.find(['?', '#']) {
            return Err(format!(
                "URL must not contain a query or a fragment ({:?}): {text}",
                &rest[at..]
            ));
        }
        // an opaque or rooted rest has no host
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        if host.contains('@') {
            return Err("URL must not contain a user name or password".to_owned()); // so the text is not repeated
        }
        check_host(host).map_err(go_error)?;
        if scheme.is_unix() {
            let file = format!("{host}{path}");
            if file.is_empty() {
                return Err(format!("URL must name a socket file: {text}"));
            }
            return Ok(Self {
                raw: format!("{}:{rest}", scheme.name()),
                scheme,
                host: file,
                port: 0,
            });
        }
        let no_port = || format!("URL address does not have the form \"host:port\": {text}");
        let (name, port) = split_port(host).ok_or_else(no_port)?;
        if !path.is_empty() {
            return Err(format!("URL must not contain a path: {text}"));
        }
        let port = match port {
            "" => return Err(no_port()),
            digits => digits
                .parse()
                .map_err(|_| format!("URL port must be at most 65535: {text}"))?,
        };
        Ok(Self {
            raw: format!("{}:{rest}", scheme.name()),
            scheme,
            host: name.to_owned(),
            port,
        })
    }

    pub fn is_tls(&self) -> bool {
        self.scheme.is_tls()
    }

    /// `host:port` as for dialling: brackets around IPv6. Unix sockets: the file.
    pub fn authority(&self) -> String {
        match (self.scheme.is_unix(), self.host.contains(':')) {
            (true, _) => self.host.clone(),
            (false, true) => format!("[{}]:{}", self.host, self.port),
            (false, false) => format!("{}:{}", self.host, self.port),
        }
    }

    /// The file to bind, relative to the working directory unless it is absolute.
    pub fn socket_path(&self) -> Option<&Path> {
        self.scheme.is_unix().then(|| Path::new(&self.host))
    }

    pub fn ip(&self) -> Option<IpAddr> {
        if self.scheme.is_unix() {
            None
        } else {
            self.host.parse().ok()
        }
    }
}

/// A comma-separated list: each URL once, sorted.
pub(super) fn parse_list(text: &str) -> Result<Vec<Url>, String> {
    let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// Lower-case scheme and what follows its colon. An empty scheme means there is none.
fn split_scheme(text: &str) -> Result<(String, &str), String> {
    for (at, letter) in text.char_indices() {
        match letter {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            ':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    let first = text.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err("first path segment in URL cannot contain colon".to_owned());
    }
    Ok((String::new(), text))
}

fn check_host(host: &str) -> Result<(), String> {
    let bad = |letter: char| letter == ' ' || "\"<>\\^`{|}".contains(letter);
    if let Some(letter) = host.chars().find(|letter| bad(*letter)) {
        return Err(format!("invalid character {:?} in host name", letter.to_string()));
    }
    let port = if host.starts_with('[') {
        let Some(end) = host.rfind(']') else {
            return Err("missing ']' in host".to_owned());
        };
        &host[end + 1..]
    } else {
        if let Some(at) = host.find('%') {
            let escape: String = host[at..].chars().take(3).collect();
            return Err(format!("invalid URL escape {escape:?}"));
        }
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let well_formed = port.is_empty() || port.starts_with(':') && digits.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed {
        Ok(())
    } else {
        Err(format!("invalid port {port:?} after host"))
    }
}

/// Host without brackets, and port; both may be empty.
fn split_port(host: &str) -> Option<(&str, &str)> {
    if let Some(rest) = host.strip_prefix('[') {
        let (name, port) = rest.split_once(']')?;
        return Some((name, port.strip_prefix(':')?));
    }
    host.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, raw, scheme, host, port) in [
            (
                "http://127.0.0.1:2379",
                "http://127.0.0.1:2379",
                Scheme::Http,
                "127.0.0.1",
                2379,
            ),
            (
                " HTTPS://Example.com:1 ",
                "https://Example.com:1",
                Scheme::Https,
                "Example.com",
                1,
            ),
            ("http://[::1]:80", "http://[::1]:80", Scheme::Http, "::1", 80),
            ("http://:2379", "http://:2379", Scheme::Http, "", 2379),
            ("http://localhost:0", "http://localhost:0", Scheme::Http, "localhost", 0),
            (
                "unix://127.0.0.1:20170",
                "unix://127.0.0.1:20170",
                Scheme::Unix,
                "127.0.0.1:20170",
                0,
            ),
            ("unix://s.sock", "unix://s.sock", Scheme::Unix, "s.sock", 0),
            (
                "unixs:///abs/path.sock",
                "unixs:///abs/path.sock",
                Scheme::Unixs,
                "/abs/path.sock",
                0,
            ),
            ("unix:rel.sock", "unix:rel.sock", Scheme::Unix, "rel.sock", 0),
        ] {
            let wanted = Url {
                raw: raw.to_owned(),
                scheme,
                host: host.to_owned(),
                port,
            };
            assert_eq!(Url::parse(text), Ok(wanted), "{text}");
        }
        assert_eq!(Url::parse("http://[::1]:80").unwrap().authority(), "[::1]:80");
        assert_eq!(Url::parse("http://a:80").unwrap().authority(), "a:80");
        assert_eq!(
            Url::parse("unix:///a/b").unwrap().socket_path(),
            Some(Path::new("/a/b"))
        );
    }

    #[test]
    fn bad_urls_are_refused_in_etcds_words() {
        let form = r#"URL address does not have the form "host:port": "#;
        let scheme = "URL scheme must be http, https, unix, or unixs: ";
        for (text, reason) in [
            ("", scheme.to_owned()),
            ("foo", format!("{scheme}foo")),
            ("ftp://x:1", format!("{scheme}ftp://x:1")),
            ("//127.0.0.1:1", format!("{scheme}//127.0.0.1:1")),
            ("localhost:2379", format!("{scheme}localhost:2379")),
            (
                "127.0.0.1:2379",
                r#"parse "127.0.0.1:2379": first path segment in URL cannot contain colon"#.to_owned(),
            ),
            (":2379", r#"parse ":2379": missing protocol scheme"#.to_owned()),
            ("http://", format!("{form}http://")),
            ("http://127.0.0.1", format!("{form}http://127.0.0.1")),
            ("http://[::1]", format!("{form}http://[::1]")),
            ("http:/127.0.0.1:1", format!("{form}http:/127.0.0.1:1")),
            (
                "http://127.0.0.1:1/",
                "URL must not contain a path: http://127.0.0.1:1/".to_owned(),
            ),
            (
                "http://127.0.0.1:1/a",
                "URL must not contain a path: http://127.0.0.1:1/a".to_owned(),
            ),
            (
                "http://127.0.0.1:99999",
                "URL port must be at most 65535: http://127.0.0.1:99999".to_owned(),
            ),
            (
                "http://127.0.0.1:-1",
                r#"parse "http://127.0.0.1:-1": invalid port ":-1" after host"#.to_owned(),
            ),
            (
                "http://::1:80",
                r#"parse "http://::1:80": invalid port "::1:80" after host"#.to_owned(),
            ),
            (
                "http://[::1:1",
                r#"parse "http://[::1:1": missing ']' in host"#.to_owned(),
            ),
            (
                "unix://localhost:s1",
                r#"parse "unix://localhost:s1": invalid port ":s1" after host"#.to_owned(),
            ),
            (
                "http://a b:1",
                r#"parse "http://a b:1": invalid character " " in host name"#.to_owned(),
            ),
            (
                "http://a%zz:1",
                r#"parse "http://a%zz:1": invalid URL escape "%zz""#.to_owned(),
            ),
            (
                "http://a\tb:1",
                r#"parse "http://a\tb:1": net/url: invalid control character in URL"#.to_owned(),
            ),
        ] {
            assert_eq!(Url::parse(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn passwords_in_urls_are_refused_and_not_repeated() {
        let reason = Url::parse("http://user:hunter2@127.0.0.1:1").unwrap_err();
        assert!(!reason.contains("hunter2"), "{reason}");
    }

    #[test]
    fn lists_are_sorted_and_hold_each_url_once() {
        let urls = parse_list("http://b:1, http://a:1,http://b:1").unwrap();
        let raw: Vec<_> = urls.iter().map(Url::to_string).collect();
        assert_eq!(raw, ["http://a:1", "http://b:1"]);
        assert!(parse_list("http://a:1,").is_err());
    }
}
