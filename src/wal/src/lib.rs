//! The durable log: what a client waits for before it hears "done".
//!
//! ```text
//!  callers ──append, vote, truncate, purge──► queue ──► writer thread: one write + one sync per batch
//!     ▲                                                   │            │
//!     └── read: recent from memory, older from segments   │            └─► Done callbacks, in order
//!                                                         ▼
//!            1.wal ──► 2.wal ──► 3.wal ──► 4.wal (prepared: zero-filled, synced, named)
//!              ▲ purged: recycled                  ▲ helper thread
//! ```
//!
//! Votes, the committed position and the entries share one sequence of records, so that one sync covers them all and
//! their order on disk is the order of the calls. The byte layout and the rules of recovery are in `FORMAT.md`.
//!
//! What always holds:
//! - a [`Done`] hears `Ok` only after a sync that covers its operation;
//! - after a failed write or sync nothing is acknowledged again by this [`Wal`]; reads go on;
//! - what recovery returns is a prefix of what was asked for, and holds everything that was acknowledged: anything
//!   else is reported as [`Error::Damage`], never repaired in silence;
//! - every entry read back from disk was checked against a checksum that covers its place as well as its bytes.
//!
//! Nothing here knows about async, clocks or raft's types: bytes in, bytes out.
//!
//! For simulations there is a log without threads (behind the feature `testing`): the same writer, whose turns somebody
//! takes by hand.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batch;
pub mod check;
pub mod disk;
mod entry;
mod error;
mod format;
mod log;
mod options;
mod owner;
mod prepare;
mod read;
mod recover;
mod scan;
mod segment;
#[cfg(any(test, feature = "testing"))]
mod stepper;
mod wal;
mod writer;

pub use disk::{Disk, File, RealDisk};
pub use entry::{Done, Entry, LogPos};
pub use error::Error;
pub use options::{Observer, Options, Recovered, Torn};
#[cfg(any(test, feature = "testing"))]
pub use stepper::Stepper;
pub use wal::Wal;
