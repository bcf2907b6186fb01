//! What a verified certificate says about its owner.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The parts of a client's certificate that the server acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// The subject's last common name, as Go takes it, when there is one and it is not empty.
    pub common_name: Option<String>,
    /// Seconds since 1970 after which it is no longer valid.
    not_after_secs: i64,
}

impl CertificateIdentity {
    /// `None` for bytes that are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let common_name = parsed
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .last()
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        Some(Self {
            common_name,
            not_after_secs: parsed.validity().not_after.timestamp(),
        })
    }

    /// Whether it has run out. A resumed session is not verified again, so this is asked on every connection.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let now_secs = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        i64::try_from(now_secs).is_ok_and(|now_secs| now_secs > self.not_after_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    /// Who may write the subject of a certificate decides whom etcd takes its owner for; we must not decide otherwise.
    #[test]
    fn the_last_common_name_counts() {
        let common_name = |names: &[&str]| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            for (n, name) in names.iter().enumerate() {
                // The same attribute under two types, since the library keeps one of each.
                let kind = match n {
                    0 => DnType::CommonName,
                    _ => DnType::CustomDnType(vec![2, 5, 4, 3]),
                };
                params.distinguished_name.push(kind, *name);
            }
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            CertificateIdentity::of(certificate.der()).unwrap().common_name
        };
        assert_eq!(common_name(&[]), None);
        assert_eq!(common_name(&["alice"]).as_deref(), Some("alice"));
        assert_eq!(common_name(&["alice", "root"]).as_deref(), Some("root"));
        assert_eq!(common_name(&["alice", ""]), None);
    }
}
