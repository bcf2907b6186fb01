//! Snapshots on their way to peers, and what the log must keep for them: a peer that has installed one goes on with the
//! entries behind it. Were they purged meanwhile, it would need the next snapshot, and so on for ever.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A peer that has installed a snapshot gets so long to take the entries behind it.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Shared by those who send and the purge.
#[derive(Clone, Default)]
pub struct Holds(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    next: u64,
    positions: BTreeMap<u64, u64>,
}

/// Holds what is behind a position until it is dropped, and a while after.
pub struct Hold {
    holds: Holds,
    number: u64,
}

impl Holds {
    pub fn hold(&self, position: u64) -> Hold {
        let mut held = self.0.lock();
        held.next += 1;
        let number = held.next;
        held.positions.insert(number, position);
        Hold {
            holds: self.clone(),
            number,
        }
    }

    /// Up to where the log may be purged; `None`: nobody minds.
    pub fn least(&self) -> Option<u64> {
        self.0.lock().positions.values().min().copied()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (holds, number) = (self.holds.clone(), self.number);
        let release = async move {
            tokio::time::sleep(AFTERWARDS).await;
            holds.0.lock().positions.remove(&number);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(_) => drop(crate::runtime::spawn(release)),
            // Everything ends.
            Err(_) => drop(self.holds.0.lock().positions.remove(&self.number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_behind_a_snapshot_stays_until_a_while_after_its_transfer() {
        let holds = Holds::default();
        assert_eq!(holds.least(), None);
        let (first, second) = (holds.hold(7), holds.hold(5));
        assert_eq!(holds.least(), Some(5));
        drop(second);
        tokio::time::sleep(AFTERWARDS / 2).await;
        assert_eq!(holds.least(), Some(5));
        tokio::time::sleep(AFTERWARDS).await;
        assert_eq!(holds.least(), Some(7));
        drop(first);
        tokio::time::sleep(AFTERWARDS * 2).await;
        assert_eq!(holds.least(), None);
    }
}
