//! A member on its way up: it is opened on a thread of its own, and whoever waits for it may end before it is there.

use super::CLOSE_BY;
use crate::bootstrap::data_dir::DataDir;
use crate::member::Member;
use parking_lot::Mutex;
use std::sync::Arc;

/// Keeps the data directory locked until the process is gone: whoever waits for the locks opens the files at once, and
/// the last thread to have them open may be the last to end.
#[derive(Default)]
pub(super) struct Opening(Mutex<Opened>);

#[derive(Default)]
struct Opened {
    member: Option<Arc<Member>>,
    _locked: Option<DataDir>,
    /// Nobody waits any more.
    ended: bool,
}

impl Opening {
    /// The member is open. One that nobody waits for is stopped: dropped instead, it would end in disorder, with errors
    /// in the log that mean nothing. Blocks.
    pub fn done(&self, member: &Arc<Member>, data_dir: DataDir) {
        let mut opened = self.0.lock();
        opened._locked = Some(data_dir);
        if opened.ended {
            drop(opened);
            member.node.stop(CLOSE_BY);
        } else {
            opened.member = Some(member.clone());
        }
    }

    /// What is open goes to the caller, who ends it; what opens from now on ends by itself.
    pub fn end(&self) -> Option<Arc<Member>> {
        let mut opened = self.0.lock();
        opened.ended = true;
        opened.member.take()
    }
}
