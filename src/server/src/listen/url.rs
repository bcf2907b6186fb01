//! Where to listen: `http://host:port`, `https://host:port`, `unix://file`, `unixs://file`. The settings' parser reads
//! them, so that what is accepted as a setting can be bound.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use crate::config::Scheme;
use crate::config::Url;

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
#[error("{0}")]
pub struct UrlError(String);

impl ListenUrl {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl From<&Url> for ListenUrl {
    fn from(url: &Url) -> Self {
        let place = match url.socket_path() {
            Some(path) => Place::File(path.to_owned()),
            None => Place::Tcp {
                host: url.host.clone(),
                port: url.port,
            },
        };
        Self {
            scheme: url.scheme,
            place,
        }
    }
}

impl FromStr for ListenUrl {
    type Err = UrlError;

    fn from_str(raw: &str) -> Result<Self, UrlError> {
        Url::parse(raw).map(|url| Self::from(&url)).map_err(UrlError)
    }
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
        let opaque: ListenUrl = "unix:rel.sock".parse().unwrap();
        assert_eq!(opaque.place(), &Place::File(PathBuf::from("rel.sock")));
    }

    #[test]
    fn bad_urls_are_named() {
        for raw in [
            "localhost:2379",
            "ftp://a:1",
            "http://a:1/x",
            "unix://",
            "http://a",
            "http://a:70000",
            "http://a:",
        ] {
            let error = raw.parse::<ListenUrl>().unwrap_err().to_string();
            assert!(error.contains(raw), "{raw}: {error}");
        }
        for raw in ["http://a:x", "http://::1:1", "http://u@a:1", "http://a:+1"] {
            assert!(raw.parse::<ListenUrl>().is_err(), "{raw}");
        }
    }
}
