//! The replicated state machine: revisions, history, watch, lease and members over one backend file. Sync and
//! deterministic: apply is a pure function of (state, command); no clock, no randomness, no tokio.
//!
//! * [`command`] — what the log carries: commands, their encoding, their outcomes;
//! * [`validate`] — what is checked before something is proposed;
//! * [`apply`] — the write side: [`Applier`];
//! * [`store`] — the read side: [`Store`], and how both are opened;
//! * [`mvcc`] — keys in many versions;
//! * [`lease`], [`members`], [`alarms`] — replicated state beside the keys;
//! * [`origins`] — whose batches are applied up to where, so that one that comes twice is applied once;
//! * [`event`] — what a change looks like to watchers;
//! * [`watch`] — from published changes to the responses of watch streams;
//! * [`backend`] — the durable store under all of it: one file, one writer, views that stand still.
//!
//! For simulations (behind the feature `testing`) there are `testing`, twins of the disk that fail on demand, and
//! `Store::open_stepped`, a store without threads.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alarms;
pub mod apply;
pub mod backend;
pub mod command;
pub mod error;
pub mod event;
pub mod lease;
pub mod members;
pub mod mvcc;
pub mod origins;
#[cfg(feature = "planted")]
pub mod planted;
mod polite;
mod stepped;
pub mod store;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod validate;
pub mod watch;

pub use apply::Applier;
pub use backend::Applied;
pub use error::Error;
pub use lease::LeaseInfo;
pub use mvcc::answer::{Piece, RangeAnswer};
pub use origins::Origin;
#[cfg(any(test, feature = "testing"))]
pub use stepped::Stepper;
pub use store::{
    EventSink, HashKv, Image, Incoming, Options, Received, Selection, Store, Taken, TxnAnswer, Unfinished,
    VIEW_BYTES_MAX,
};
