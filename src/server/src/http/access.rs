//! Who may ask from a browser. A web page that a user visits can send requests to every port that the user's machine
//! reaches; these rules keep it from writing (foreign origins) and from reading through a rebound host name.

use std::collections::HashSet;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method, Request};

/// `--cors`: origins whose pages may use the client port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    #[default]
    Any,
    /// Exact `Origin` values, scheme and port included.
    Only(HashSet<String>),
}

/// What [`Cors`] says to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CorsVerdict {
    /// Serve it, with these headers on the answer.
    Allow(HeaderValue),
    /// Serve it without CORS headers: the browser keeps the answer from the page.
    Silent,
    /// A write from a page that is not on the list. Withholding the answer would come too late.
    Forbid,
}

impl Cors {
    pub(crate) fn judge<B>(&self, request: &Request<B>) -> CorsVerdict {
        let Cors::Only(origins) = self else {
            return CorsVerdict::Allow(HeaderValue::from_static("*"));
        };
        let Some(origin) = request.headers().get(ORIGIN) else {
            return CorsVerdict::Silent;
        };
        if origin.to_str().is_ok_and(|origin| origins.contains(origin)) {
            return CorsVerdict::Allow(origin.clone());
        }
        match *request.method() {
            Method::GET | Method::HEAD | Method::OPTIONS => CorsVerdict::Silent,
            _ => CorsVerdict::Forbid,
        }
    }
}

pub(crate) fn allow_headers(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
    );
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    );
}

/// `--host-whitelist`: host names under which plaintext HTTP may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostWhitelist {
    #[default]
    Any,
    /// Names without port.
    Only(HashSet<String>),
}

impl HostWhitelist {
    /// The host that the request names, if that is not allowed.
    pub(crate) fn refused<B>(&self, request: &Request<B>) -> Option<String> {
        let HostWhitelist::Only(hosts) = self else {
            return None;
        };
        let named = match request.uri().host() {
            Some(host) => host.to_owned(),
            None => {
                let host = request.headers().get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
                without_port(&String::from_utf8_lossy(host)).to_owned()
            }
        };
        (!hosts.contains(&named)).then_some(named)
    }
}

/// `host:port` → `host`, `[v6]:port` → `v6`.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(inside, _)| inside);
    }
    match host.rsplit_once(':') {
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

/// The text of a 421 answer.
pub(crate) fn misdirected_text(host: &str) -> String {
    // The name came from the request; keep it short and plain.
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    format!(
        "This member is not asked under the host name {host:?}.\n\n\
         Plaintext HTTP is answered for listed host names only, so that a web page cannot reach it through a name of \
         its own (DNS rebinding, CVE-2018-5702). If the name is right, serve clients by TLS (--cert-file, --key-file), \
         or add the name to the list:\n\n    --host-whitelist \"{host}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri("/v3/kv/put");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn only(entries: &[&str]) -> HashSet<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    /// A24
    #[test]
    fn foreign_origin_write_is_refused() {
        let cors = Cors::Only(only(&["http://a.example:80"]));
        let listed = [("origin", "http://a.example:80")];
        let foreign = [("origin", "http://a.example")];
        assert_eq!(
            cors.judge(&request(Method::POST, &listed)),
            CorsVerdict::Allow(HeaderValue::from_static("http://a.example:80"))
        );
        assert_eq!(cors.judge(&request(Method::POST, &foreign)), CorsVerdict::Forbid);
        assert_eq!(cors.judge(&request(Method::PUT, &foreign)), CorsVerdict::Forbid);
        assert_eq!(cors.judge(&request(Method::GET, &foreign)), CorsVerdict::Silent);
        assert_eq!(cors.judge(&request(Method::POST, &[])), CorsVerdict::Silent);
        assert_eq!(
            Cors::Any.judge(&request(Method::POST, &foreign)),
            CorsVerdict::Allow(HeaderValue::from_static("*"))
        );
    }

    #[test]
    fn hosts_are_compared_without_port() {
        let hosts = HostWhitelist::Only(only(&["good.example", "::1", "10.0.0.1"]));
        for good in ["good.example", "good.example:2379", "[::1]:2379", "10.0.0.1:1"] {
            assert_eq!(hosts.refused(&request(Method::GET, &[("host", good)])), None, "{good}");
        }
        for bad in ["evil.example", "good.example.evil", "", "[::2]:1"] {
            assert!(
                hosts.refused(&request(Method::GET, &[("host", bad)])).is_some(),
                "{bad}"
            );
        }
        assert_eq!(HostWhitelist::Any.refused(&request(Method::GET, &[])), None);
        let text = misdirected_text("evil.example\r\n<b>");
        assert!(text.contains("evil.example<b>") && text.contains("--host-whitelist") && !text.contains('\r'));
    }
}
