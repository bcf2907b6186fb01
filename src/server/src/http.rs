//! HTTP for people, probes and scrapers: health, readiness, version, metrics and debug variables.
//!
//! * [`node`] — what the endpoints ask the node;
//! * [`routes`] — which path lives on which port, and the answers that belong to no endpoint;
//! * [`health`] — `/health`;
//! * [`checks`] — `/livez` and `/readyz`;
//! * [`access`] — who may ask from a browser: CORS, foreign origins, rebound host names;
//! * `gzip` — bodies for those who take them compressed;
//! * [`peer`] — what other members ask;
//! * [`serve`] — HTTP/1.1 connections, with their deadlines;
//! * `over_h2` — the same router on HTTP/2 connections that came by TLS.

pub mod access;
pub mod checks;
mod gzip;
pub mod health;
pub mod node;
pub(crate) mod over_h2;
pub(crate) mod peer;
pub mod routes;
pub(crate) mod serve;

pub use access::{Cors, HostWhitelist};
pub use node::{Alarm, Check, Membership, NodeState, Probe, ProbeFuture};
pub use routes::{HttpService, MetricsPage, Ops};
