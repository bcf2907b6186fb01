//! The replicated state machine: revisions, history, watch, lease and members over one backend file. Sync and
//! deterministic: apply is a pure function of (state, command); no clock, no randomness, no tokio.
//!
//! * [`backend`] — the durable store under all of it: one file, one writer, views that stand still;
//! * [`command`] — what the log carries: commands, their encoding, their outcomes;
//! * [`event`] — what a change looks like to watchers.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backend;
pub mod command;
pub mod event;
pub mod mvcc;
