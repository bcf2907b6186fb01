//! One self-signed certificate for `--tls`: the server presents it, the client trusts it alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::CertificateDer;

/// Files for the server, configuration for the client.
#[derive(Clone)]
pub struct Material {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client: Arc<rustls::ClientConfig>,
}

/// Writes `cert.pem` and `key.pem` into `dir`. They are good for 127.0.0.1 only.
pub fn generate(dir: &Path) -> anyhow::Result<Material> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).context("make a certificate")?;
    let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
    fs::write(&cert_file, made.cert.pem()).with_context(|| format!("write {}", cert_file.display()))?;
    fs::write(&key_file, made.signing_key.serialize_pem()).with_context(|| format!("write {}", key_file.display()))?;

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(made.cert.der().to_vec()))
        .context("trust the certificate")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Material {
        cert_file,
        key_file,
        client: Arc::new(client),
    })
}
