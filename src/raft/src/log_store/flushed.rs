//! Up to where the log is durable here.
//!
//! openraft applies what a quorum has, also before this member's own disk has it. The store commits by itself; were its
//! commit to overtake the log, a loss of power would leave a store that knows entries which the log lacks, or has others
//! in the place of. So apply waits for the log, which is durable in the same moment where nothing is wrong with the disk.

use parking_lot::Mutex;
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;

/// A handle; clones are the same.
#[derive(Clone, Default)]
pub struct Flushed(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    upto: u64,
    failed: bool,
}

impl Flushed {
    /// Of a log that is durable up to a position.
    pub fn upto(position: u64) -> Self {
        let flushed = Self::default();
        flushed.0.state.lock().upto = position;
        flushed
    }

    pub(super) fn appended(&self, last: u64) {
        {
            let mut state = self.0.state.lock();
            state.upto = state.upto.max(last);
        }
        self.0.changed.notify_waiters();
    }

    pub(super) fn truncated(&self, last: u64) {
        let mut state = self.0.state.lock();
        state.upto = state.upto.min(last);
    }

    pub(super) fn failed(&self) {
        self.0.state.lock().failed = true;
        self.0.changed.notify_waiters();
    }

    /// Returns when the log is durable up to a position. After a failure it never will be.
    pub async fn wait(&self, position: u64) -> io::Result<()> {
        #[cfg(feature = "planted")]
        if planted::is(Bug::ApplyBeforeSync) || planted::is(Bug::AnswerBeforeSync) {
            return Ok(());
        }
        loop {
            // From before the look: what changes after it is heard.
            let changed = self.0.changed.notified();
            {
                let state = self.0.state.lock();
                if state.upto >= position {
                    return Ok(());
                }
                if state.failed {
                    return Err(io::Error::other("the log fails; what is not in it is not applied"));
                }
            }
            changed.await;
        }
    }
}
