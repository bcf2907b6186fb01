//! Why a handshake failed, in words that say what to do about it. Where etcd has words for it, these are they, since
//! people and test suites search for them.

use std::io;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::plain_io_error;

/// An error of a TLS connection or of what is below it.
pub fn explain(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection during the TLS handshake".to_owned()
        }
        None => plain_io_error(error),
    }
}

/// Whether it is an error of TLS itself.
pub fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}

fn of_tls(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => format!("remote error: tls: {}", alert_text(*alert)),
        Error::NoCertificatesPresented => "tls: client didn't provide a certificate".to_owned(),
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            "client certificate authentication failed: it has none of the allowed names".to_owned()
        }
        Error::InvalidCertificate(error) => {
            format!("tls: failed to verify certificate: {}", certificate_text(error))
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => format!("tls: no TLS version or cipher suite in common: {error}"),
        other => format!("tls: {other}"),
    }
}

fn certificate_text(error: &CertificateError) -> String {
    const TIME: &str = "x509: certificate has expired or is not yet valid";
    match error {
        CertificateError::Expired | CertificateError::NotValidYet => TIME.to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("{TIME}: current time {} is after {}", shown(*time), shown(*not_after))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("{TIME}: current time {} is before {}", shown(*time), shown(*not_before))
        }
        CertificateError::UnknownIssuer => "x509: certificate signed by unknown authority".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = match expected {
                ServerName::DnsName(name) => name.as_ref().to_owned(),
                ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
                other => format!("{other:?}"),
            };
            let presented: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            match presented.is_empty() {
                true => format!("x509: certificate is not valid for any names, but wanted to match {expected}"),
                false => format!(
                    "x509: certificate is valid for {}, not {expected}",
                    presented.join(", ")
                ),
            }
        }
        CertificateError::Revoked => "x509: certificate is on the revocation list".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("x509: certificate specifies an incompatible key usage: {error}")
        }
        other => format!("x509: {other}"),
    }
}

/// The library wraps names in their kind: `DnsName("a.example")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest);
    inner.strip_suffix(')').unwrap_or(inner).trim_matches('"')
}

fn shown(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{} s after 1970", time.as_secs()))
}

/// As Go's library has them.
fn alert_text(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CloseNotify => "close notify",
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::InappropriateFallback => "inappropriate fallback",
        AlertDescription::UserCanceled => "user canceled",
        AlertDescription::NoRenegotiation => "no renegotiation",
        AlertDescription::MissingExtension => "missing extension",
        AlertDescription::UnsupportedExtension => "unsupported extension",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::BadCertificateStatusResponse => "bad certificate status response",
        AlertDescription::UnknownPSKIdentity => "unknown PSK identity",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("alert({})", u8::from(other)),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_etcd_has_words_for_is_said_in_them() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        for (error, text) in [
            (
                Error::AlertReceived(AlertDescription::BadCertificate),
                "remote error: tls: bad certificate",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "remote error: tls: certificate required",
            ),
            (
                Error::AlertReceived(AlertDescription::from(200)),
                "remote error: tls: alert(200)",
            ),
            (
                Error::NoCertificatesPresented,
                "tls: client didn't provide a certificate",
            ),
            (
                CertificateError::ExpiredContext {
                    time: at(1_700_000_000),
                    not_after: at(0),
                }
                .into(),
                "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time \
                 2023-11-14T22:13:20Z is after 1970-01-01T00:00:00Z",
            ),
            (
                CertificateError::UnknownIssuer.into(),
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("c").unwrap(),
                    presented: vec!["DnsName(\"a\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()],
                }
                .into(),
                "tls: failed to verify certificate: x509: certificate is valid for a, 10.0.0.1, not c",
            ),
        ] {
            assert_eq!(explain(&io::Error::new(io::ErrorKind::InvalidData, error)), text);
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(explain(&refused), "connection refused");
    }
}
