//! What clients call.
//!
//! * [`v3`] — the gRPC services.

pub mod v3;
