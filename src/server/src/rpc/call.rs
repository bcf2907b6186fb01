//! What a handler knows about the call besides its message: who calls, with which metadata, and until when.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use quorate_api::{Code, Error, Status};
use tokio::time::Instant;

/// Who is at the other end of a connection. Shared by all its calls.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// `None` for a unix socket, whose peers have no address.
    pub addr: Option<SocketAddr>,
    /// `Some` when the connection is encrypted.
    pub tls: Option<TlsPeer>,
}

/// What a caller's own TLS connection says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsPeer {
    /// Whether a client certificate was presented; if so, it was verified.
    pub has_certificate: bool,
    /// The subject's common name of that certificate, when there is one and it is not empty.
    pub common_name: Option<String>,
}

/// The context of one call.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub peer: Arc<PeerInfo>,
    /// When the caller gives up. The transport answers for itself once it has passed and drops the handler.
    pub deadline: Option<Instant>,
    metadata: HeaderMap,
}

impl CallContext {
    /// For calls that did not come in by gRPC, such as those of the JSON gateway.
    pub fn new(peer: Arc<PeerInfo>, metadata: HeaderMap, deadline: Option<Instant>) -> Self {
        Self {
            peer,
            deadline,
            metadata,
        }
    }

    /// Everything that the caller sent along.
    pub fn metadata(&self) -> &HeaderMap {
        &self.metadata
    }

    /// The auth token: `token`, or `authorization` when that is absent, less an optional leading `Bearer `.
    /// A token that is no text cannot be valid and comes back as one that never is, rather than as none.
    pub fn token(&self) -> Option<&str> {
        let raw = self
            .metadata
            .get("token")
            .or_else(|| self.metadata.get("authorization"))?;
        let token = std::str::from_utf8(raw.as_bytes()).unwrap_or("\u{fffd}");
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }

    /// The caller would rather have an error than wait while this member sees no leader.
    pub fn requires_leader(&self) -> bool {
        self.metadata.get("hasleader").is_some_and(|value| value == "true")
    }

    /// The API version of the client's library. Text only, since it ends up as a metric's label.
    pub fn client_api_version(&self) -> Result<Option<&str>, Status> {
        match self.metadata.get("client-api-version") {
            None => Ok(None),
            Some(value) => match std::str::from_utf8(value.as_bytes()) {
                Ok(version) => Ok(Some(version)),
                Err(_) => Err(Error::InvalidClientApiVersion.into()),
            },
        }
    }

    /// The call came through a JSON gateway, so that a client certificate would be the gateway's and not the caller's.
    pub fn is_gateway(&self) -> bool {
        self.metadata.contains_key("grpcgateway-accept")
    }

    /// The common name of the caller's own certificate; never that of a gateway in between.
    pub fn common_name(&self) -> Option<&str> {
        if self.is_gateway() {
            return None;
        }
        self.peer.tls.as_ref()?.common_name.as_deref()
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
pub(crate) fn parse_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let raw = String::from_utf8_lossy(value.as_bytes());
    let malformed = |why: &str| {
        Err(Status::new(
            Code::Internal,
            format!("malformed grpc-timeout: transport: {why}: {raw:?}"),
        ))
    };
    let bytes = raw.as_bytes();
    if bytes.len() < 2 {
        return malformed("timeout string is too short");
    }
    if bytes.len() > 9 {
        return malformed("timeout string is too long");
    }
    let (digits, unit) = bytes.split_at(bytes.len() - 1);
    let Some(amount) = decimal(digits) else {
        return malformed("timeout is not a number");
    };
    let timeout = match unit[0] {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return malformed("timeout unit is not recognized"),
    };
    Ok(Some(timeout))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn call(pairs: &[(&'static str, &[u8])]) -> CallContext {
        let mut metadata = HeaderMap::new();
        for (name, value) in pairs {
            metadata.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let peer = PeerInfo { addr: None, tls: None };
        CallContext::new(Arc::new(peer), metadata, None)
    }

    #[test]
    fn token_leads_and_bearer_is_dropped() {
        assert_eq!(call(&[]).token(), None);
        assert_eq!(call(&[("authorization", b"Bearer abc.1")]).token(), Some("abc.1"));
        assert_eq!(
            call(&[("authorization", b"other"), ("token", b"abc.1")]).token(),
            Some("abc.1")
        );
        assert_eq!(call(&[("token", b"\xff")]).token(), Some("\u{fffd}"));
    }

    /// A20
    #[test]
    fn invalid_utf8_header_cannot_reach_labels() {
        assert_eq!(call(&[]).client_api_version(), Ok(None));
        assert_eq!(
            call(&[("client-api-version", b"3.7")]).client_api_version(),
            Ok(Some("3.7"))
        );
        assert_eq!(
            call(&[("client-api-version", b"\xff\xfe")]).client_api_version(),
            Err(Error::InvalidClientApiVersion.into())
        );
    }

    /// A26
    #[test]
    fn a_gateway_call_has_no_common_name() {
        let mut direct = call(&[]);
        direct.peer = Arc::new(PeerInfo {
            addr: None,
            tls: Some(TlsPeer {
                has_certificate: true,
                common_name: Some("root".into()),
            }),
        });
        assert_eq!(direct.common_name(), Some("root"));
        let mut through = call(&[("grpcgateway-accept", b"")]);
        through.peer = direct.peer.clone();
        assert_eq!(through.common_name(), None);
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        let parse = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            parse_timeout(&headers)
        };
        assert_eq!(parse_timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(parse("5S"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(parse("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(parse("100m"), Ok(Some(Duration::from_millis(100))));
        assert_eq!(parse("7u"), Ok(Some(Duration::from_micros(7))));
        assert_eq!(parse("1n"), Ok(Some(Duration::from_nanos(1))));
        for bad in ["", "S", "1x", "123456789S", "-1S", "1.5S"] {
            let status = parse(bad).unwrap_err();
            assert_eq!(status.code, Code::Internal);
            assert!(status.message.starts_with("malformed grpc-timeout: "), "{status}");
        }
    }
}
