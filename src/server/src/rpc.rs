//! gRPC over HTTP/2: the transport between a client's connection and the handlers.
//!
//! Framing, deadlines, flow control and the texts of transport errors live here, on top of the bare `h2` crate: general
//! gRPC stacks cost two to three times the CPU per call and say other things than etcd's clients expect.
//!
//! ```text
//! connection task ── h2 ── headers ──► Method ──┬─ unary: a future in this very task
//!        ▲                                      └─ stream: a task of its own
//!        └── Cork: all that one turn of the task has to say goes out in one write
//! ```
//!
//! * [`Api`] — what the handlers implement;
//! * [`method`] — every RPC, and which path names it;
//! * [`call`] — metadata, caller and deadline of a call;
//! * [`reply`] — what a unary handler may answer with;
//! * [`stream`] — both directions of a streaming call;
//! * [`pace`] — how slowly an answer may be read;
//! * [`observe`] — hooks for metrics;
//! * `connection`, `unary`, `trailers`, `payload` — calls and their answers;
//! * `framing`, `gzip`, `memory` — request messages, and what they may take before they are whole;
//! * `cork`, `frames`, `authority`, `keepalive`, `resets` — bytes on their way in and out, and who abuses them.
//!
//! Invariants: a handler of a call that the client has given up is dropped. A message is refused by its length prefix,
//! before it is buffered. What a connection holds for a client that does not read is bounded, see [`Limits`].

pub mod call;
pub mod method;
pub mod observe;
pub mod pace;
pub mod reply;
pub mod stream;

mod authority;
pub mod connection;
mod cork;
mod frames;
mod framing;
mod gzip;
mod keepalive;
mod memory;
pub(crate) mod payload;
mod resets;
mod trailers;
pub(crate) mod unary;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use quorate_api::Status;

pub use call::{CallContext, PeerInfo, TlsPeer};
pub use connection::Rpc;
pub use method::{Kind, Method};
pub use observe::{NoObserver, RpcObserver};
pub use reply::{PieceFuture, Reply, ReplyBody};
pub use stream::{Incoming, Outgoing};

/// The handlers behind the transport.
///
/// Both futures may be dropped at any await point: when the client resets the call, its connection ends, or its deadline
/// passes. Work that must not stop half-way belongs to a task of its own.
pub trait Api: Send + Sync + 'static {
    /// Answers a call of kind [`Kind::Unary`]. It runs inside the task of the connection: it must not block, and long
    /// computations belong elsewhere.
    fn unary(
        &self,
        method: Method,
        call: &CallContext,
        message: Bytes,
    ) -> impl Future<Output = Result<Reply, Status>> + Send;

    /// Serves a call of another kind, in a task of its own. Returning ends the call.
    fn stream(
        &self,
        method: Method,
        call: CallContext,
        incoming: Incoming,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What one client may make us hold, and how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest request message; etcd: `--max-request-bytes` + 512 KiB.
    pub message_bytes_max: usize,
    /// `--max-concurrent-streams`. Whatever it says, a connection never gets more than [`Limits::STREAMS_MAX`].
    pub concurrent_streams_max: u32,
    /// Reply bytes of one connection that are handed to HTTP/2 and not yet written to its socket.
    pub unwritten_bytes_max: usize,
    /// Request messages that arrived in part or are being inflated, all connections together; more have to wait.
    pub partial_bytes_max: usize,
    /// How long a request message may take from its first byte to its last; for calls with just one, from the head of
    /// the call. The same for a single HTTP/2 frame, and for a header block.
    pub message_deadline: Duration,
    /// How long an answer that is produced while it is read may make no progress. It keeps a revision readable, so a
    /// client that never reads must not hold it for ever.
    pub stall_deadline: Duration,
    /// How fast such an answer must be taken on the whole, once `stall_deadline` is over.
    pub body_bytes_per_sec_min: u64,
    /// Decoded size of one header list.
    pub header_bytes_max: u32,
    /// Decoded size of the header lists of all open calls of a connection. More calls get RESOURCE_EXHAUSTED.
    pub open_header_bytes_max: usize,
    /// Calls that the client gave up before we looked at them, such as those that wait behind unread answers; more in
    /// one go ends the connection. How many running calls it may give up, `resets` says.
    pub pending_resets_max: usize,
    /// Ping after the client was silent this long; `None` is never.
    pub keepalive_interval: Option<Duration>,
    /// Close when such a ping is not answered; `None` waits for ever.
    pub keepalive_timeout: Option<Duration>,
    /// A client that pings more often is sent away (`too_many_pings`), with two strikes of grace.
    pub ping_interval_min: Duration,
}

impl Limits {
    /// A stream costs about 1.5 KiB besides its headers and messages, which are counted, so this is 100 MiB for a
    /// connection that opens all it may.
    pub const STREAMS_MAX: u32 = 65_536;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 1_572_864 + 524_288,
            concurrent_streams_max: u32::MAX,
            unwritten_bytes_max: 512 * 1024,
            partial_bytes_max: 256 * 1024 * 1024,
            message_deadline: Duration::from_secs(60),
            stall_deadline: Duration::from_secs(300),
            body_bytes_per_sec_min: 32 * 1024,
            header_bytes_max: 64 * 1024,
            open_header_bytes_max: 8 * 1024 * 1024,
            pending_resets_max: 1000,
            keepalive_interval: Some(Duration::from_secs(2 * 3600)),
            keepalive_timeout: Some(Duration::from_secs(20)),
            ping_interval_min: Duration::from_secs(5),
        }
    }
}
