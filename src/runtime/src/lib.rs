//! What every process of Quorate stands on, whatever it serves.
//!
//! * [`telemetry`] — logging that can't stop the node;
//! * [`metrics`] — the registry and the page that scrapers read;
//! * [`tls`] — TLS material that follows its files.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bulk;
pub mod metrics;
pub mod telemetry;
pub mod tls;
