//! How many connections there may be, of all listeners together: each holds a descriptor, and when those run out, the
//! log and the store can't open their files.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{ListenLimits, network};

#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    per_address: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

impl Slots {
    pub(super) fn new(limits: &ListenLimits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections_max.clamp(1, Semaphore::MAX_PERMITS))),
            per_address: limits.connections_per_address.max(1),
            addresses: Mutex::new(HashMap::new()),
        }
    }

    /// A place for a connection from `address`; unix sockets have none and count only in total. Waits while all are
    /// taken. `None` when this address has as many as it may: waiting for those would hold up everybody behind it.
    pub(super) async fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Slot> {
        let mut slot = Slot {
            owner: Arc::clone(self),
            address: None,
            _of_all: None,
        };
        if let Some(address) = address.map(network) {
            let mut addresses = self.addresses.lock();
            let count = addresses.entry(address).or_insert(0);
            if *count >= self.per_address {
                return None;
            }
            *count += 1;
            slot.address = Some(address);
        }
        // It is never closed.
        slot._of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Some(slot)
    }
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    owner: Arc<Slots>,
    address: Option<IpAddr>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut addresses = self.owner.addresses.lock();
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// C6
    #[test]
    fn no_address_gets_all_places() {
        let slots = Arc::new(Slots::new(&ListenLimits {
            connections_max: 3,
            connections_per_address: 2,
            ..ListenLimits::default()
        }));
        let enter = |raw: &str| slots.enter(Some(raw.parse().unwrap())).now_or_never();
        let first = enter("10.0.0.1").unwrap().unwrap();
        let second = enter("10.0.0.1").unwrap().unwrap();
        assert!(enter("10.0.0.1").unwrap().is_none(), "it has its share");
        let third = enter("10.0.0.2").unwrap().unwrap();
        assert!(enter("10.0.0.2").is_none(), "all are taken: waits");
        assert!(slots.enter(None).now_or_never().is_none());
        drop(first);
        drop(enter("::ffff:10.0.0.1").unwrap().unwrap());
        drop((second, third));
        assert!(slots.addresses.lock().is_empty());
    }
}
