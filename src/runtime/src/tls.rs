//! TLS for everything that listens or dials: what it is made of, who is believed, and how new files come into effect.
//!
//! ```text
//! cert, key, CA, CRL files ──build──► generation: configs with rules, ticketer, session store
//!        ▲                                 │ swapped as a whole
//!        └── looked at again, at most ─────┴─► each connection, accepted or dialled, takes the current one
//!            every CHECK_INTERVAL
//! ```
//!
//! * [`server`] — the TLS of a listener;
//! * [`client`] — the TLS of connections to other members;
//! * [`files`] — reading PEM files, with errors that name the file;
//! * [`suites`] — cipher suites and versions by the names that etcd's flags use;
//! * [`address`] — whether a certificate may be used from where its owner connects;
//! * [`identity`] — what a verified certificate says about its owner;
//! * [`self_made`] — certificates of our own making, for `--auto-tls` and `--peer-auto-tls`;
//! * [`explain`] — why a handshake failed, in words;
//! * `follow` — files that change;
//! * `verify` — the rules for certificates beyond their chain;
//! * `unverified` — the one place that takes any certificate.
//!
//! Invariants: a set of files that cannot serve never replaces one that can. A new generation has new session tickets,
//! so that a certificate which the new rules refuse cannot come back by resumption. Only AEAD suites, TLS 1.2 or later.

pub mod address;
pub mod client;
pub mod explain;
pub mod files;
mod follow;
pub mod identity;
pub mod self_made;
pub mod server;
pub mod suites;
mod unverified;
mod verify;

use std::path::PathBuf;

pub use address::AddressError;
pub use client::{Alpn, ClientTls, ClientTlsOptions, Trust};
pub use explain::explain;
pub use files::FileError;
pub use identity::CertificateIdentity;
pub use server::{Generation, ServerTls, ServerTlsOptions};
pub use suites::{TlsVersion, UnknownSuite, UnknownVersion};

/// Why there is no usable TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("certificate {cert} and key {key} do not go together or are of no usable kind: {source}")]
    Identity {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("trusted CA file {path} holds no usable certificate: {why}")]
    Roots { path: PathBuf, why: String },
    #[error("client certificates are required, but neither a trusted CA file nor a system root store was found")]
    NoRoots,
    #[error("no trusted CA file is given and no system root store was found, so that no server can be believed")]
    NoServerRoots,
    #[error(transparent)]
    Suites(#[from] UnknownSuite),
    #[error("the TLS versions and cipher suites given leave nothing to agree on: {0}")]
    Protocol(rustls::Error),
    #[error("allowed host name {0:?} is no DNS name or IP address")]
    HostName(String),
}
