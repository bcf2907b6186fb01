//! Which revisions are being read. Compaction takes nothing that stands at the oldest of them.
//!
//! A reader registers under the index lock, in the same hold in which it checks that its revision is not compacted;
//! compaction looks here under that lock too. So there is no moment in which a read has passed the check and is not
//! yet seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub struct OpenReads {
    by_revision: Mutex<BTreeMap<i64, usize>>,
}

/// One open read; over when dropped.
#[derive(Debug)]
pub struct Pin {
    reads: Arc<OpenReads>,
    revision: i64,
}

impl OpenReads {
    pub fn pin(self: &Arc<Self>, revision: i64) -> Pin {
        *self.by_revision.lock().entry(revision).or_default() += 1;
        Pin {
            reads: self.clone(),
            revision,
        }
    }

    pub fn count(&self) -> usize {
        self.by_revision.lock().values().sum()
    }

    pub fn oldest(&self) -> Option<i64> {
        self.by_revision.lock().keys().next().copied()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut reads = self.reads.by_revision.lock();
        if let Some(count) = reads.get_mut(&self.revision) {
            *count -= 1;
            if *count == 0 {
                reads.remove(&self.revision);
            }
        }
    }
}
