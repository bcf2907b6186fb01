//! Where to listen: `http://host:port`, `https://host:port`, `unix://file`, `unixs://file`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    pub const fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }
}

/// One listen URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenUrl {
    scheme: Scheme,
    place: Place,
}

/// A place that can be bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An empty host means all addresses of this machine.
    Tcp { host: String, port: u16 },
    /// Relative to the working directory unless absolute.
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    #[error("URL address does not have the form \"host:port\": {0}")]
    Address(String),
    #[error("URL must not contain a path: {0}")]
    Path(String),
    #[error("URL names no socket file: {0}")]
    NoFile(String),
}

impl ListenUrl {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl FromStr for ListenUrl {
    type Err = UrlError;

    fn from_str(raw: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = raw.split_once("://").ok_or_else(|| UrlError::Scheme(raw.to_owned()))?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(UrlError::Scheme(raw.to_owned())),
        };
        let place = match scheme {
            // The whole rest names the file, `host:port` forms included.
            Scheme::Unix | Scheme::Unixs if rest.is_empty() => return Err(UrlError::NoFile(raw.to_owned())),
            Scheme::Unix | Scheme::Unixs => Place::File(PathBuf::from(rest)),
            Scheme::Http | Scheme::Https => tcp_place(raw, rest)?,
        };
        Ok(Self { scheme, place })
    }
}

fn tcp_place(raw: &str, rest: &str) -> Result<Place, UrlError> {
    if rest.contains(['/', '?', '#']) {
        return Err(UrlError::Path(raw.to_owned()));
    }
    let bad = || UrlError::Address(raw.to_owned());
    let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
    let host = match host.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']').ok_or_else(bad)?,
        None if host.contains(':') => return Err(bad()),
        None => host,
    };
    if host.contains('@') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    Ok(Place::Tcp {
        host: host.to_owned(),
        port: port.parse().map_err(|_| bad())?,
    })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp { host, port } => write!(f, "{host}:{port}"),
            Place::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_back_as_written() {
        for raw in [
            "http://localhost:2379",
            "https://10.0.0.1:2379",
            "http://[::1]:0",
            "http://:2379",
            "unix://127.0.0.1:20170",
            "unix://s.sock",
            "unixs:///run/quorate/s.sock",
        ] {
            assert_eq!(raw.parse::<ListenUrl>().unwrap().to_string(), raw);
        }
    }

    #[test]
    fn bad_urls_are_named() {
        let parse = |raw: &str| raw.parse::<ListenUrl>().unwrap_err();
        assert!(matches!(parse("localhost:2379"), UrlError::Scheme(_)));
        assert!(matches!(parse("ftp://a:1"), UrlError::Scheme(_)));
        assert!(matches!(parse("http://a:1/x"), UrlError::Path(_)));
        assert!(matches!(parse("unix://"), UrlError::NoFile(_)));
        for raw in [
            "http://a",
            "http://a:x",
            "http://a:70000",
            "http://::1:1",
            "http://a:",
            "http://u@a:1",
            "http://a:+1",
        ] {
            assert!(matches!(parse(raw), UrlError::Address(_)), "{raw}");
        }
    }
}
