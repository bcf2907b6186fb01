//! TODO
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod http;
pub mod listen;
pub mod rpc;
