//! Cipher suites and protocol versions by the names that etcd's flags use.

use std::str::FromStr;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

/// Suites that etcd accepts by name and we never speak: CBC modes, RC4, or key exchange without forward secrecy.
const UNSAFE: [&str; 17] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
];

/// `--tls-min-version`, `--tls-max-version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    #[default]
    Tls12,
    Tls13,
}

impl FromStr for TlsVersion {
    type Err = UnknownVersion;

    fn from_str(name: &str) -> Result<Self, UnknownVersion> {
        match name {
            "TLS1.2" => Ok(TlsVersion::Tls12),
            "TLS1.3" => Ok(TlsVersion::Tls13),
            other => Err(UnknownVersion(other.to_owned())),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
pub struct UnknownVersion(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownSuite {
    #[error("unexpected TLS cipher suite {name:?}; supported are {}", supported_names().join(", "))]
    Name { name: String },
    #[error("none of the TLS 1.2 cipher suites given is safe enough to speak; supported are {}", supported_names().join(", "))]
    NoneLeft,
}

/// The name by which flags and IANA know a suite.
fn name(suite: &SupportedCipherSuite) -> String {
    let name = format!("{:?}", suite.suite());
    // TLS 1.3 suites are `TLS13_…` in the library and `TLS_…` in the registry.
    match name.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => name,
    }
}

fn supported_names() -> Vec<String> {
    aws_lc_rs::ALL_CIPHER_SUITES.iter().map(name).collect()
}

/// The crypto behind TLS, with the suites of TLS 1.2 narrowed to `names`. Known unsafe suites are skipped, since old
/// manifests list them among others; a name that nobody knows is an error.
pub(super) fn provider(names: &[String]) -> Result<CryptoProvider, UnknownSuite> {
    let mut provider = aws_lc_rs::default_provider();
    if names.is_empty() {
        return Ok(provider);
    }
    let supported = supported_names();
    // Go's library has a second, older name for these.
    let names: Vec<String> = names
        .iter()
        .map(|name| {
            name.strip_suffix("_CHACHA20_POLY1305")
                .map_or(name.clone(), |kx| format!("{kx}_CHACHA20_POLY1305_SHA256"))
        })
        .collect();
    if let Some(name) = names
        .iter()
        .find(|name| !supported.contains(name) && !UNSAFE.contains(&name.as_str()))
    {
        return Err(UnknownSuite::Name { name: name.clone() });
    }
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some() || names.contains(&name(suite)));
    let is_tls12 = |suite: &SupportedCipherSuite| suite.tls13().is_none();
    if names.iter().any(|name| !is_tls13_name(name)) && !provider.cipher_suites.iter().any(is_tls12) {
        return Err(UnknownSuite::NoneLeft);
    }
    Ok(provider)
}

/// Whether the names can be had, to say so before anything is opened.
pub fn check(names: &[String]) -> Result<(), UnknownSuite> {
    provider(names).map(drop)
}

fn is_tls13_name(name: &str) -> bool {
    aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .any(|suite| suite.tls13().is_some() && self::name(suite) == name)
}

pub(super) fn versions(min: TlsVersion, max: Option<TlsVersion>) -> Vec<&'static SupportedProtocolVersion> {
    let max = max.unwrap_or(TlsVersion::Tls13);
    [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)]
        .into_iter()
        .filter(|(version, _)| (min..=max).contains(version))
        .map(|(_, supported)| supported)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A15
    #[test]
    fn tls_default_suites_are_aead_only() {
        let suites = provider(&[]).unwrap().cipher_suites;
        assert!(!suites.is_empty());
        for suite in suites {
            let name = name(&suite);
            assert!(name.contains("GCM") || name.contains("CHACHA20_POLY1305"), "{name}");
            assert!(!UNSAFE.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn named_suites_narrow_tls12_only() {
        let one = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let suites = provider(&names(&[one, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"]))
            .unwrap()
            .cipher_suites;
        let tls12: Vec<_> = suites
            .iter()
            .filter(|suite| suite.tls13().is_none())
            .map(name)
            .collect();
        assert_eq!(tls12, [one]);
        assert!(suites.iter().any(|suite| suite.tls13().is_some()));
        let old_name = provider(&names(&["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"])).unwrap();
        assert!(old_name.cipher_suites.iter().any(|suite| suite.tls13().is_none()));
    }

    #[test]
    fn bad_suites_are_named() {
        let error = provider(&names(&["TLS_NOPE"])).unwrap_err().to_string();
        assert!(
            error.contains("TLS_NOPE") && error.contains("TLS_AES_128_GCM_SHA256"),
            "{error}"
        );
        assert_eq!(
            provider(&names(&["TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"])).unwrap_err(),
            UnknownSuite::NoneLeft
        );
    }

    #[test]
    fn versions_follow_min_and_max() {
        assert_eq!(versions(TlsVersion::Tls12, None).len(), 2);
        assert_eq!(versions(TlsVersion::Tls13, None), [&TLS13]);
        assert_eq!(versions(TlsVersion::Tls12, Some(TlsVersion::Tls12)), [&TLS12]);
        assert!(versions(TlsVersion::Tls13, Some(TlsVersion::Tls12)).is_empty());
        assert!("TLS1.1".parse::<TlsVersion>().is_err());
    }
}
