//! What whole-system tests are built from: real server processes, real sockets, real clients.
//!
//! - [`binary`]: which server and client programs a test drives, and what version they say they are;
//! - [`node`]: one server process with its flags, data directory and log; [`cluster`]: one to seven of them, who leads,
//!   who comes and goes;
//! - [`links`]: the network between members, cut, delayed or slowed for each pair and direction;
//! - [`client`]: a client that retries as etcd's does; [`load`]: many of them at work, recorded;
//!   [`check`]: whether what they saw can have come from one store (pure functions, for simulations as well);
//! - [`tls`]: a certificate authority of one's own;
//! - [`etcdctl`]: etcd's command line as a client; [`rpc`]: gRPC where every byte, status and trailer is seen;
//!   [`raw`]: HTTP/2 where the test decides about every frame; [`http`]: HTTP/1 where every byte is seen;
//! - [`wait`]: conditions with a deadline; [`background`]: where the kit's own tasks run.
//!
//! A test of a cluster is a plain function that says what happens, one thing after the other:
//!
//! ```no_run
//! # use quorate_kit::{Binary, Cluster, Load};
//! let mut cluster = Cluster::of(&Binary::oracle())
//!     .members(3)
//!     .heartbeat_ms(50)
//!     .election_ms(500)
//!     .with_peer_tls()
//!     .with_links()
//!     .start();
//! let load = Load::on(&cluster).clients(12).watchers(3).start();
//! let leader = cluster.wait_leader();
//! cluster.links().mute(leader); // it hears the others, but they do not hear it
//! let next = cluster.wait_leader_without(&[leader]);
//! load.wait_acknowledged(500);
//! cluster.links().heal_all();
//! cluster[next].pause();
//! cluster.wait_leader();
//! cluster[next].resume();
//! let record = load.finish();
//! record.check(); // linearizable, and the watchers saw everything
//! cluster.wait_equal();
//! let fourth = cluster.grow();
//! cluster.remove(leader);
//! cluster[leader].wait_end(quorate_kit::cluster::LIMIT);
//! ```
//!
//! Everything cleans up when dropped, also while a test panics: processes are killed, directories removed, and the tail
//! of each log is printed if the test failed. A cluster of a failed test leaves its directory behind (in
//! `QUORATE_FAILED_DIR`, else where temporary files go) and says where: logs, data, and the history of its load. When
//! the test process itself is killed, its servers end with it.
#![allow(clippy::unwrap_used)] // a test kit: a broken environment is a failed test

pub mod background;
pub mod binary;
pub mod check;
pub mod client;
pub mod cluster;
pub mod etcdctl;
pub mod http;
pub mod links;
pub mod load;
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
pub use load::Load;
pub use node::{Config, Node, Stderr};
pub use rpc::Rpc;
