//! The replicated state machine: revisions, history, watch, lease and members over one backend file. Sync and
//! deterministic: apply is a pure function of (state, command); no clock, no randomness, no tokio.
//!
//! * [`command`] — what the log carries: commands, their encoding, their outcomes;
//! * [`event`] — what a change looks like to watchers;
//! * [`watch`] — from published changes to the responses of watch streams.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod command;
pub mod event;
pub mod watch;
