//! Certificates for `--tls`: an authority of one run, a server, and a client, who each show theirs to the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Files for the server, configuration for the client.
#[derive(Clone)]
pub struct Material {
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client: Arc<rustls::ClientConfig>,
}

/// Writes `ca.pem`, `cert.pem` and `key.pem` into `dir`. They are good for 127.0.0.1 only.
pub fn generate(dir: &Path) -> anyhow::Result<Material> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "compare");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().context("make a key")?;
    let authority = params.self_signed(&key).context("make an authority")?;
    let issuer = Issuer::new(params, key);
    // Good for both sides: etcd's own gateway calls its port with the server's certificate.
    let issue = |name: &str| -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).context("name a certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, &issuer).context("make a certificate")?;
        Ok((certificate, key))
    };
    let (server, server_key) = issue("server")?;
    let (client, client_key) = issue("client")?;
    let files = [
        ("ca.pem", authority.pem()),
        ("cert.pem", server.pem()),
        ("key.pem", server_key.serialize_pem()),
    ];
    let [ca_file, cert_file, key_file] = files.map(|(name, pem)| (dir.join(name), pem));
    for (path, pem) in [&ca_file, &cert_file, &key_file] {
        fs::write(path, pem).with_context(|| format!("write {}", path.display()))?;
    }

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(authority.der().to_vec()))
        .context("trust the authority")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client_key = PrivateKeyDer::try_from(client_key.serialize_der())
        .map_err(|error| anyhow::anyhow!("read back the client's key: {error}"))?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![CertificateDer::from(client.der().to_vec())], client_key)
        .context("use the client's certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Material {
        ca_file: ca_file.0,
        cert_file: cert_file.0,
        key_file: key_file.0,
        client: Arc::new(config),
    })
}
