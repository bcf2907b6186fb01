//! The server: settings, start, listeners, and everything clients can call.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bootstrap;
pub mod config;
