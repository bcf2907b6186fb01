//! Shared types: the generated messages, ids and positions, key ranges, and etcd's error texts. No I/O.
//!
//! * [`proto`] — the messages of `proto/`, byte fields as [`bytes::Bytes`];
//! * [`ids`] — newtypes for everything that is a number on the wire;
//! * [`key_range`] — the one meaning of `key` and `range_end` that all calls share;
//! * [`status`] — a gRPC code with its text;
//! * [`error`] — every text that a client can match on, with its code;
//! * [`txn`] — reading transactions, however deep;
//! * [`version`] — what we tell clients we are.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod error;
pub mod ids;
pub mod key_range;
pub mod status;
pub mod txn;
pub mod version;

/// The messages of `proto/`, one module per protobuf package.
pub mod proto {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

pub use error::Error;
pub use ids::{ClusterId, LeaseId, MemberId, Revision, Term};
pub use key_range::{KeyRange, RangeEnd};
pub use status::{Code, Status};
