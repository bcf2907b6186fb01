//! The node: configuration, bootstrap, listeners and the services behind them.
//!
//! * [`config`] — flags, environment and file, with etcd's precedence and messages;
//! * [`bootstrap`] — the data directory and who this member is;
//! * [`run`] — start and stop, in order;
//! * [`member`] — what request handlers share;
//! * [`api`] — the services;
//! * [`rpc`], [`listen`], [`http`] — gRPC, sockets and the HTTP endpoints;
//! * [`peer`] — other members: how they are reached;
//! * [`tls`] — what listeners and the dialler secure connections with;
//! * [`metrics`], [`state`] — what the node says about itself.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod bootstrap;
pub mod budget;
pub mod config;
pub mod http;
pub mod listen;
pub mod member;
pub mod metrics;
pub mod peer;
pub mod rpc;
pub mod run;
pub mod state;
pub mod tls;

pub use run::main;
