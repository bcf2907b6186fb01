//! Reads the files that TLS is made of.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Longest file that is read: bundles of all public roots are some hundred KiB, CRLs a few MiB.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where Linux distributions and BSDs keep the bundle of public roots.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is longer than a file of this kind can be ({len} bytes)")]
    TooLong { path: PathBuf, len: u64 },
    #[error("{path} is damaged PEM: {source}")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{path} holds no {what}; expected PEM with a section of that kind")]
    Missing { path: PathBuf, what: &'static str },
    #[error("{path} holds a {what} that cannot be parsed: {why}")]
    Parse {
        path: PathBuf,
        what: &'static str,
        why: String,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let error = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let len = std::fs::metadata(path).map_err(error)?.len();
    if len > BYTES_MAX {
        return Err(FileError::TooLong {
            path: path.to_owned(),
            len,
        });
    }
    std::fs::read(path).map_err(error)
}

fn damaged(path: &Path) -> impl Fn(pem::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Pem {
        path: path.clone(),
        source,
    }
}

/// All certificates of a file, in their order.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(damaged(path))?;
    if certificates.is_empty() {
        return Err(FileError::Missing {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(certificates)
}

pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => FileError::Missing {
            path: path.to_owned(),
            what: "private key",
        },
        other => damaged(path)(other),
    })
}

/// The certificates of a bundle as roots. One that is no certificate spoils the bundle, lest a typo lets nobody in.
pub fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| FileError::Parse {
            path: path.to_owned(),
            what: "certificate",
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The system's bundle and where it was found. Odd entries in it are skipped.
pub fn system_roots() -> Option<(RootCertStore, PathBuf)> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named
        .into_iter()
        .chain(SYSTEM_BUNDLES.map(PathBuf::from))
        .find_map(|path| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(&path).ok()?);
            (!roots.is_empty()).then_some((roots, path))
        })
}

/// The serial numbers that a revocation list names, PEM or DER.
pub(super) fn revoked_serials(path: &Path) -> Result<HashSet<Vec<u8>>, FileError> {
    let bytes = read(path)?;
    let lists: Vec<CertificateRevocationListDer<'_>> = if bytes.starts_with(b"\x30") {
        vec![CertificateRevocationListDer::from(&bytes[..])]
    } else {
        CertificateRevocationListDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(damaged(path))?
    };
    if lists.is_empty() {
        return Err(FileError::Missing {
            path: path.to_owned(),
            what: "X509 CRL",
        });
    }
    let mut serials = HashSet::new();
    for list in lists {
        let (_, parsed) = CertificateRevocationList::from_der(&list).map_err(|error| FileError::Parse {
            path: path.to_owned(),
            what: "revocation list",
            why: error.to_string(),
        })?;
        serials.extend(
            parsed
                .iter_revoked_certificates()
                .map(|revoked| serial(revoked.raw_serial())),
        );
    }
    Ok(serials)
}

/// A serial number without the zeros that DER puts in front.
pub(super) fn serial(raw: &[u8]) -> Vec<u8> {
    let zeros = raw.iter().take_while(|byte| **byte == 0).count();
    raw[zeros..].to_vec()
}
