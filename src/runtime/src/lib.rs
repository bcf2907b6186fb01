//! What every process of Quorate stands on, whatever it serves.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod metrics;
pub mod telemetry;
