//! Shared types.
pub mod proto { include!(concat!(env!("OUT_DIR"), "/messages.rs")); }
