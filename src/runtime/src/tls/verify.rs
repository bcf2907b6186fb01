//! The rules for certificates that come on top of their chain: revoked serial numbers and allowed names. The same for
//! clients that come to us and for servers that we dial.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{self, serial};
use super::{CertificateIdentity, Error};

#[derive(Debug)]
pub(super) struct Rules {
    /// As etcd does it: a plain match of serial numbers over all certificates presented.
    revoked: HashSet<Vec<u8>>,
    hostnames: Vec<ServerName<'static>>,
    common_names: Vec<String>,
}

impl Rules {
    pub(super) fn new(crl_file: Option<&Path>, hostnames: &[String], common_names: &[String]) -> Result<Self, Error> {
        let revoked = match crl_file {
            Some(path) => files::revoked_serials(path)?,
            None => HashSet::new(),
        };
        let hostnames = hostnames
            .iter()
            .map(|name| ServerName::try_from(name.clone()).map_err(|_| Error::HostName(name.clone())))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            revoked,
            hostnames,
            common_names: common_names.to_vec(),
        })
    }

    /// For a chain that was verified.
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        for certificate in std::iter::once(end_entity).chain(intermediates) {
            if self.is_revoked(certificate)? {
                return Err(CertificateError::Revoked.into());
            }
        }
        if !self.has_allowed_name(end_entity)? {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(())
    }

    fn is_revoked(&self, certificate: &CertificateDer<'_>) -> Result<bool, rustls::Error> {
        if self.revoked.is_empty() {
            return Ok(false);
        }
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        Ok(self.revoked.contains(&serial(parsed.raw_serial())))
    }

    fn has_allowed_name(&self, certificate: &CertificateDer<'_>) -> Result<bool, rustls::Error> {
        if !self.hostnames.is_empty() {
            let parsed = ParsedCertificate::try_from(certificate)?;
            if !self
                .hostnames
                .iter()
                .any(|name| verify_server_name(&parsed, name).is_ok())
            {
                return Ok(false);
            }
        }
        if !self.common_names.is_empty() {
            let name = CertificateIdentity::of(certificate).and_then(|identity| identity.common_name);
            // An empty name in the list allows those that have none, as in etcd.
            return Ok(self.common_names.contains(&name.unwrap_or_default()));
        }
        Ok(true)
    }
}

/// An authority that was made anew under its old name did not sign what the old one did. To both sides that is an
/// unknown authority, not a damaged message.
fn of_chain(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        other => other,
    }
}

/// Asks the standard verifier of clients first and then the rules.
#[derive(Debug)]
pub(super) struct RuledClients {
    chain: Arc<dyn ClientCertVerifier>,
    rules: Rules,
}

impl RuledClients {
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, rules: Rules) -> Self {
        Self { chain, rules }
    }
}

impl ClientCertVerifier for RuledClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(of_chain)?;
        self.rules.check(end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Asks the standard verifier of servers first and then the rules.
#[derive(Debug)]
pub(super) struct RuledServers {
    chain: Arc<dyn ServerCertVerifier>,
    rules: Rules,
}

impl RuledServers {
    pub(super) fn new(chain: Arc<dyn ServerCertVerifier>, rules: Rules) -> Self {
        Self { chain, rules }
    }
}

impl ServerCertVerifier for RuledServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
            .map_err(of_chain)?;
        self.rules.check(end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
