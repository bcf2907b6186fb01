//! Whether a certificate may be used from where its owner connects: on the peer port, a certificate that names addresses
//! or hosts is good from there only. A stolen one is then of no use elsewhere. etcd's rules, in this order:
//!
//! 1. no address and no host in it: good from everywhere;
//! 2. it names the address;
//! 3. one of its host names, wildcards included, is what a reverse lookup of the address gives;
//! 4. one of its host names, wildcards not included, resolves to the address.
//!
//! The system's resolver gives one name for an address. Where DNS has several, only the first counts for rule 3.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::telemetry::plain_io_error;

/// etcd stops listing there.
const LISTED_MAX: usize = 100;

/// Why a certificate is of no use from an address. Worded as etcd words it, since people search for that.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("x509: the certificate cannot be read again")]
    Unreadable,
    #[error("x509: certificate is valid for {}, not {from}", listed(addresses))]
    Address { addresses: Vec<IpAddr>, from: IpAddr },
    #[error("tls: {:?} does not match any of DNSNames [{}]{}", from.to_string(), quoted(names), why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default())]
    Names {
        names: Vec<String>,
        from: IpAddr,
        /// The last lookup that failed.
        why: Option<String>,
    },
}

fn listed(addresses: &[IpAddr]) -> String {
    match addresses.len() {
        many if many >= LISTED_MAX => format!("{many} IP SANs, but none matched"),
        _ => addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn quoted(names: &[String]) -> String {
    let mut text = String::new();
    for (n, name) in names.iter().take(LISTED_MAX).enumerate() {
        let space = if n == 0 { "" } else { " " };
        // Writing to a string does not fail.
        let _ = write!(text, "{space}{name:?}");
    }
    text
}

/// DNS.
pub(super) trait Resolver {
    /// What a reverse lookup gives.
    fn names_of(&self, address: IpAddr) -> impl Future<Output = io::Result<Vec<String>>> + Send;
    fn addresses_of(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The one that the system has.
pub(super) struct SystemResolver;

impl Resolver for SystemResolver {
    async fn names_of(&self, address: IpAddr) -> io::Result<Vec<String>> {
        let lookup = move || dns_lookup::lookup_addr(&address).map_err(io::Error::from);
        let name = tokio::task::spawn_blocking(lookup).await.map_err(io::Error::other)??;
        Ok(vec![name])
    }

    async fn addresses_of(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// The names of a certificate that say where its owner is.
struct Places {
    addresses: Vec<IpAddr>,
    names: Vec<String>,
}

impl Places {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let mut places = Self {
            addresses: Vec::new(),
            names: Vec::new(),
        };
        let Some(alternative) = parsed.subject_alternative_name().ok()? else {
            return Some(places);
        };
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => places.names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => places.addresses.push(address(bytes)?),
                _ => {}
            }
        }
        Some(places)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

pub(super) async fn check(
    certificate: &CertificateDer<'_>,
    from: IpAddr,
    resolver: &impl Resolver,
) -> Result<(), AddressError> {
    // A port for both families shows an IPv4 address inside an IPv6 one.
    let from = from.to_canonical();
    let Places { addresses, names } = Places::of(certificate).ok_or(AddressError::Unreadable)?;
    if addresses.iter().any(|address| address.to_canonical() == from) {
        return Ok(());
    }
    if names.is_empty() {
        return match addresses.is_empty() {
            true => Ok(()),
            false => Err(AddressError::Address { addresses, from }),
        };
    }
    let mut why = None;
    match resolver.names_of(from).await {
        Ok(found) if found.iter().any(|name| names.iter().any(|own| is_name(own, name))) => return Ok(()),
        Ok(_) => {}
        Err(error) => why = Some(plain_io_error(&error)),
    }
    for name in names.iter().filter(|name| !name.starts_with("*.")) {
        match resolver.addresses_of(name).await {
            Ok(found) if found.iter().any(|address| address.to_canonical() == from) => return Ok(()),
            Ok(_) => {}
            Err(error) => why = Some(format!("lookup {name}: {}", plain_io_error(&error))),
        }
    }
    Err(AddressError::Names { names, from, why })
}

/// Whether `found` is the name in the certificate. A wildcard stands for any number of labels here, as in etcd.
fn is_name(own: &str, found: &str) -> bool {
    let found = found.strip_suffix('.').unwrap_or(found).to_ascii_lowercase();
    match own.strip_prefix('*') {
        Some(rest) if rest.starts_with('.') => found.ends_with(&rest.to_ascii_lowercase()),
        _ => found.eq_ignore_ascii_case(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    /// `a.example` and `x.pods.example` are 10.0.0.1, both ways; the resolver knows nothing else.
    struct Toy;

    impl Resolver for Toy {
        async fn names_of(&self, address: IpAddr) -> io::Result<Vec<String>> {
            match address.to_string().as_str() {
                "10.0.0.1" => Ok(vec!["X.pods.example.".to_owned()]),
                _ => Err(io::Error::other("no such host")),
            }
        }

        async fn addresses_of(&self, name: &str) -> io::Result<Vec<IpAddr>> {
            match name {
                "a.example" => Ok(vec!["10.0.0.1".parse().unwrap()]),
                _ => Err(io::Error::other("no such host")),
            }
        }
    }

    async fn answer(names: &[&str], from: &str) -> Result<(), String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        check(certificate.der(), from.parse().unwrap(), &Toy)
            .await
            .map_err(|error| error.to_string())
    }

    /// C3
    #[tokio::test]
    async fn certificates_are_good_from_where_they_say() {
        for (names, from) in [
            (&[][..], "10.0.0.9"),
            (&["10.0.0.9"], "10.0.0.9"),
            (&["10.0.0.9"], "::ffff:10.0.0.9"),
            (&["::1", "10.0.0.9"], "::1"),
            (&["10.0.0.9", "a.example"], "10.0.0.1"),
            (&["nowhere.example", "a.example"], "10.0.0.1"),
            (&["x.pods.example"], "10.0.0.1"),
            (&["*.pods.example"], "10.0.0.1"),
            (&["*.EXAMPLE"], "10.0.0.1"),
        ] {
            assert_eq!(answer(names, from).await, Ok(()), "{names:?} from {from}");
        }
        for (names, from, why) in [
            (
                &["127.0.0.1"][..],
                "10.0.0.9",
                "x509: certificate is valid for 127.0.0.1, not 10.0.0.9",
            ),
            (
                &["127.0.0.1", "::1"],
                "10.0.0.9",
                "x509: certificate is valid for 127.0.0.1, ::1, not 10.0.0.9",
            ),
            (
                &["a.example", "b.example"],
                "10.0.0.9",
                r#"tls: "10.0.0.9" does not match any of DNSNames ["a.example" "b.example"] (lookup b.example: no such host)"#,
            ),
            (
                &["*.b.example"],
                "10.0.0.1",
                r#"tls: "10.0.0.1" does not match any of DNSNames ["*.b.example"]"#,
            ),
            (
                &["10.0.0.2", "c.example"],
                "10.0.0.1",
                r#"tls: "10.0.0.1" does not match any of DNSNames ["c.example"] (lookup c.example: no such host)"#,
            ),
        ] {
            assert_eq!(answer(names, from).await, Err(why.to_owned()), "{names:?} from {from}");
        }
    }

    #[tokio::test]
    async fn the_system_knows_its_own_name() {
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(SystemResolver.addresses_of("localhost").await.unwrap().contains(&own));
        // What it is called differs between systems, that it has a name does not.
        assert!(!SystemResolver.names_of(own).await.unwrap().is_empty());
    }
}
