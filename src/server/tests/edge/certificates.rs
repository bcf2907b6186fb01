//! A certificate authority for tests, its files, and TLS clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_runtime::tls::{ServerTls, ServerTlsOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kit::{H2, h2_over};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    next_serial: AtomicU64,
    pub dir: tempfile::TempDir,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub cert: String,
    pub key: String,
    pub serial: u64,
}

impl Authority {
    /// Writes `ca.pem`, `cert.pem` and `key.pem` for `localhost`.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let ca = Self {
            issuer: Issuer::new(params, key),
            root: root.der().clone(),
            next_serial: AtomicU64::new(1000),
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::write(ca.path("ca.pem"), root.pem()).unwrap();
        ca.write_server(&ca.server());
        ca
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write_server(&self, leaf: &Leaf) {
        std::fs::write(self.path("cert.pem"), &leaf.cert).unwrap();
        std::fs::write(self.path("key.pem"), &leaf.key).unwrap();
    }

    fn leaf(&self, name: &str, common_name: &str, usage: ExtendedKeyUsagePurpose, expired: bool) -> Leaf {
        self.issue(&[name], common_name, &[usage], expired)
    }

    /// One that serves and connects, from this machine.
    pub fn peer(&self, common_name: &str) -> Leaf {
        self.peer_at(&["localhost", "127.0.0.1"], common_name)
    }

    pub fn peer_at(&self, names: &[&str], common_name: &str) -> Leaf {
        let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(names, common_name, &both, false)
    }

    pub fn issue(&self, names: &[&str], common_name: &str, usages: &[ExtendedKeyUsagePurpose], expired: bool) -> Leaf {
        let serial = self.next_serial.fetch_add(1, Ordering::SeqCst);
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = usages.to_vec();
        params.serial_number = Some(SerialNumber::from(serial));
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        Leaf {
            cert: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    pub fn server(&self) -> Leaf {
        self.leaf("localhost", "server", ExtendedKeyUsagePurpose::ServerAuth, false)
    }

    pub fn client(&self, common_name: &str) -> Leaf {
        self.leaf(
            "client.example",
            common_name,
            ExtendedKeyUsagePurpose::ClientAuth,
            false,
        )
    }

    pub fn expired_client(&self) -> Leaf {
        self.leaf("client.example", "late", ExtendedKeyUsagePurpose::ClientAuth, true)
    }

    /// A certificate that may only serve.
    pub fn misused_client(&self) -> Leaf {
        self.leaf("client.example", "misused", ExtendedKeyUsagePurpose::ServerAuth, false)
    }

    /// Writes `NAME.pem` and `NAME-key.pem`.
    pub fn write(&self, name: &str, leaf: &Leaf) {
        std::fs::write(self.path(&format!("{name}.pem")), &leaf.cert).unwrap();
        std::fs::write(self.path(&format!("{name}-key.pem")), &leaf.key).unwrap();
    }

    /// Writes `crl.pem`.
    pub fn revoke(&self, serials: &[u64]) {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        std::fs::write(self.path("crl.pem"), list.pem().unwrap()).unwrap();
    }

    /// Without client certificates.
    pub fn options(&self) -> ServerTlsOptions {
        ServerTlsOptions {
            cert_file: self.path("cert.pem"),
            key_file: self.path("key.pem"),
            ..ServerTlsOptions::default()
        }
    }

    /// With client certificates of this authority.
    pub fn mutual_options(&self) -> ServerTlsOptions {
        ServerTlsOptions {
            trusted_ca_file: Some(self.path("ca.pem")),
            client_cert_auth: true,
            ..self.options()
        }
    }

    pub fn server_tls(&self) -> Arc<ServerTls> {
        Arc::new(ServerTls::load(self.options()).unwrap())
    }

    /// A client that trusts this authority.
    pub fn client_config(&self, leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let builder = client_builder(rustls::ALL_VERSIONS).with_root_certificates(roots);
        let mut config = match leaf {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub async fn h2(&self, addr: SocketAddr) -> H2 {
        h2_over(connect(addr, self.client_config(None, &["h2"])).await.unwrap()).await
    }
}

/// Names its provider: another package of the workspace brings a second one into the build.
pub fn client_builder(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
}

pub async fn connect(addr: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let io = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, io).await
}
