//! Whether what clients saw can have come from one store that does one thing after the other.
//!
//! Pure functions over recorded histories: no process, no socket, no clock, so that a simulation in one process judges
//! its histories with the same eyes as tests of real processes.
//!
//! - [`history`]: what is recorded: operations with the time they were called and answered, and events of watchers;
//! - [`revisions`]: what the revisions in the answers say at once: writes unique and in the order of real time, reads
//!   of what was there at their revision;
//! - [`linear`]: one order of all operations on a key that explains every answer (Wing and Gong's search, with Lowe's
//!   memory of what was tried);
//! - [`watch`]: watchers saw everything, once, in order.
//!
//! Operations whose fate nobody knows may have happened at any time after their call, or never. A complete record of
//! events ([`Truth`]) tells which.

pub mod history;
pub mod linear;
pub mod revisions;
#[cfg(test)]
mod sample;
pub mod watch;

pub use history::{Answer, Change, Event, History, Kv, Op, Outcome, Previous, Request, Time};
pub use watch::{Batch, Keys, Truth, Watcher};

/// What no correct store can have done, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// All there is to check. Without `truth`, the fate of unknown operations stays open and watchers are not judged.
pub fn all(history: &History, truth: Option<&Truth>, watchers: &[Watcher]) -> Result<(), Violation> {
    revisions::check(history, truth)?;
    linear::check(history, truth)?;
    if let Some(truth) = truth {
        for watcher in watchers {
            watch::check(watcher, truth)?;
        }
    }
    Ok(())
}
