//! Certificates that a member makes for itself, for `--auto-tls` and `--peer-auto-tls`. As etcd makes them, and found
//! under the same names, so that a member's certificate outlives the change from one to the other.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P521_SHA512, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::{info, warn};

const SERIAL_BYTES: usize = 16;
const DAYS_PER_YEAR: i64 = 365;

/// Why there is no certificate of our own making.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("selfSignedCertValidity is invalid,it should be greater than 0")]
    NoValidity,
    #[error("a certificate cannot last {years} years")]
    Validity { years: u64 },
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("make a certificate for {hosts:?}: {source}")]
    Make { hosts: Vec<String>, source: rcgen::Error },
    #[error("no random numbers for a certificate")]
    Random,
}

/// Where certificate and key lie in `dir`, whether they are made yet or not.
pub fn files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("cert.pem"), dir.join("key.pem"))
}

/// Makes certificate and key in `dir` for these hosts, unless both are there: names and addresses, without ports.
/// Blocks.
pub fn ensure(dir: &Path, hosts: &[String], years: u64) -> Result<(), MakeError> {
    let (cert, key) = files(dir);
    if cert.exists() && key.exists() {
        return Ok(());
    }
    if years == 0 {
        return Err(MakeError::NoValidity);
    }
    let not_after = i64::try_from(years)
        .ok()
        .and_then(|years| years.checked_mul(DAYS_PER_YEAR))
        .filter(|days| *days < 1_000_000_000)
        .and_then(|days| OffsetDateTime::now_utc().checked_add(time::Duration::days(days)))
        .ok_or(MakeError::Validity { years })?;
    let shown = not_after.format(&Rfc3339).unwrap_or_default();
    warn!(
        "certificate-validity-bound-not-after" = shown,
        "automatically generate certificates"
    );

    let made = |source| MakeError::Make {
        hosts: hosts.to_vec(),
        source,
    };
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(made)?;
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.not_before = OffsetDateTime::now_utc();
    params.not_after = not_after;
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).map_err(made)?;
    let certificate = params.self_signed(&pair).map_err(made)?;

    let at = |step, path: &Path| {
        let path = path.to_owned();
        move |source| MakeError::Io { step, path, source }
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(at("create", dir))?;
    // The key first: a certificate without one is made anew.
    write(&key, 0o600, &pair.serialize_pem()).map_err(at("write", &key))?;
    info!(path = %key.display(), "created key file");
    write(&cert, 0o644, &certificate.pem()).map_err(at("write", &cert))?;
    info!(path = %cert.display(), "created cert file");
    Ok(())
}

fn serial() -> Result<SerialNumber, MakeError> {
    let mut bytes = [0; SERIAL_BYTES];
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| MakeError::Random)?;
    // A serial number is positive, and not longer than it has to be.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

/// Whole or not at all, under a mode that it has from the start.
fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("pem.new");
    // One that was left behind keeps its mode.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn a_certificate_is_made_once_and_as_etcd_makes_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("fixtures/peer");
        let hosts = ["127.0.0.1", "localhost"].map(str::to_owned);
        ensure(&dir, &hosts, 2).unwrap();
        let (cert, key) = files(&dir);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&key)), (0o700, 0o600));
        let chain = super::super::files::certificates(&cert).unwrap();
        let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(parsed.subject().to_string(), "O=etcd");
        assert_eq!(parsed.issuer(), parsed.subject());
        assert!(parsed.is_ca() && parsed.serial.bits() > 120);
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 2);
        let days = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert_eq!(days / 86_400, 730);
        // ECDSA with SHA-512
        assert_eq!(parsed.signature_algorithm.algorithm.to_string(), "1.2.840.10045.4.3.4");

        let before = std::fs::read(&cert).unwrap();
        ensure(&dir, &["other".to_owned()], 0).unwrap();
        assert_eq!(std::fs::read(&cert).unwrap(), before);
    }

    #[test]
    fn a_certificate_lasts_for_some_time() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        for (years, why) in [
            (0, "greater than 0"),
            (1 << 40, "cannot last"),
            (u64::MAX, "cannot last"),
        ] {
            let error = ensure(&dir, &[], years).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(!dir.exists());
    }
}
