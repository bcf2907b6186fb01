//! What whole-system tests are built from: real server processes, real sockets, real clients.
//!
//! - [`binary`]: which server and client programs a test drives, and what version they say they are;
//! - [`node`]: one server process with its flags, data directory and log; [`cluster`]: one to seven of them;
//! - [`tls`]: a certificate authority of one's own;
//! - [`etcdctl`]: etcd's command line as a client; [`rpc`]: gRPC where every byte, status and trailer is seen;
//!   [`raw`]: HTTP/2 where the test decides about every frame; [`http`]: HTTP/1 where every byte is seen;
//! - [`wait`]: conditions with a deadline.
//!
//! Everything cleans up when dropped, also while a test panics: processes are killed, directories removed, and
//! the tail of each log is printed if the test failed.
#![allow(clippy::unwrap_used)] // a test kit: a broken environment is a failed test

pub mod background;
pub mod binary;
pub mod client;
pub mod cluster;
pub mod etcdctl;
pub mod http;
pub mod links;
pub mod node;
pub mod ports;
pub mod raw;
mod reaper;
pub mod rpc;
pub mod tls;
pub mod wait;

pub use binary::Binary;
pub use client::Client;
pub use cluster::Cluster;
pub use etcdctl::Etcdctl;
pub use links::Links;
pub use node::{Config, Node, Stderr};
pub use rpc::Rpc;
