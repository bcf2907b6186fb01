//! Certificates for one test: an authority, a server of 127.0.0.1 and localhost, a client, and a stranger.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// PEM files in one directory.
#[derive(Clone, Debug)]
pub struct Material {
    pub ca: PathBuf,
    pub server: Pair,
    /// Signed by `ca`, CommonName `client`.
    pub client: Pair,
    /// A client certificate of another authority.
    pub stranger: Pair,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Material {
    pub fn create(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let ours = Authority::new("quorate test authority");
        let other = Authority::new("another authority");
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, &ours.pem).unwrap();
        Self {
            ca,
            server: ours.issue(dir, "server", ExtendedKeyUsagePurpose::ServerAuth),
            client: ours.issue(dir, "client", ExtendedKeyUsagePurpose::ClientAuth),
            stranger: other.issue(dir, "stranger", ExtendedKeyUsagePurpose::ClientAuth),
        }
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, dir: &Path, name: &str, usage: ExtendedKeyUsagePurpose) -> Pair {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // etcd's gateway dials its own gRPC port with the server's certificate, so that one is for both sides
        params.extended_key_usages = match usage {
            ExtendedKeyUsagePurpose::ServerAuth => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            other => vec![other],
        };
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        std::fs::write(&pair.cert, cert.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
}
