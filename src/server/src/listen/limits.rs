//! What a stranger may cost before we know who it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Deadlines and caps of listeners. They hold for every port alike.
#[derive(Clone, Debug)]
pub struct ListenLimits {
    /// From the first byte to the end of the TLS handshake, and for that first byte to come.
    pub handshake_deadline: Duration,
    /// For the HTTP/2 preface or the head of an HTTP/1 request.
    pub header_deadline: Duration,
    /// Connections of one address that may be short of these at a time. More wait, holding only their descriptor.
    pub half_open_per_address: usize,
    /// The same for all addresses together.
    pub half_open_max: usize,
    /// Connections of all listeners; more wait in the kernel's queue. etcd: the limit on descriptors − 150, for each.
    pub connections_max: usize,
    /// Connections of one address; more are closed at once. It keeps one host, or one network of IPv6, from taking all
    /// places, which it can do without a word that would give it away. Half of them is what no sound client needs, and
    /// leaves a proxy or a NAT, which speaks for many, enough to serve them.
    pub connections_per_address: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            handshake_deadline: Duration::from_secs(10),
            header_deadline: Duration::from_secs(10),
            half_open_per_address: 512,
            half_open_max: 4096,
            connections_max: 65_536 - 150,
            connections_per_address: (65_536 - 150) / 2,
        }
    }
}

/// Counts connections that have not yet shown who they are.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    all: Arc<Semaphore>,
    per_address: usize,
    addresses: Mutex<HashMap<IpAddr, Address>>,
}

#[derive(Debug)]
struct Address {
    permits: Arc<Semaphore>,
    /// Connections that hold a permit or wait for one.
    users: usize,
}

impl HalfOpen {
    pub(crate) fn new(limits: &ListenLimits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.half_open_max.min(Semaphore::MAX_PERMITS))),
            per_address: limits.half_open_per_address.min(Semaphore::MAX_PERMITS),
            addresses: Mutex::new(HashMap::new()),
        }
    }

    /// Waits for a turn. Unix sockets have no address and count only in total.
    pub(crate) async fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> HalfOpenPermit {
        let mut permit = HalfOpenPermit {
            owner: Arc::clone(self),
            address: address.map(network),
            _of_address: None,
            _of_all: None,
        };
        if let Some(address) = permit.address {
            let permits = {
                let mut addresses = self.addresses.lock();
                let entry = addresses.entry(address).or_insert_with(|| Address {
                    permits: Arc::new(Semaphore::new(self.per_address)),
                    users: 0,
                });
                entry.users += 1;
                Arc::clone(&entry.permits)
            };
            // The address first, so that one that floods us queues behind itself and not before others. Neither
            // semaphore is ever closed.
            permit._of_address = permits.acquire_owned().await.ok();
        }
        permit._of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        permit
    }

    #[cfg(test)]
    fn addresses(&self) -> usize {
        self.addresses.lock().len()
    }
}

/// One host usually has a whole /64 of IPv6.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// A turn, given back when dropped.
#[derive(Debug)]
pub(crate) struct HalfOpenPermit {
    owner: Arc<HalfOpen>,
    address: Option<IpAddr>,
    _of_address: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Drop for HalfOpenPermit {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut addresses = self.owner.addresses.lock();
        if let Some(entry) = addresses.get_mut(&address) {
            entry.users -= 1;
            if entry.users == 0 {
                addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn address(raw: &str) -> Option<IpAddr> {
        Some(raw.parse().unwrap())
    }

    #[test]
    fn an_address_queues_behind_itself() {
        let half_open = Arc::new(HalfOpen::new(&ListenLimits {
            half_open_per_address: 2,
            half_open_max: 3,
            ..ListenLimits::default()
        }));
        let enter = |raw: &'static str| half_open.enter(address(raw)).now_or_never();
        let first = enter("10.0.0.1").unwrap();
        let _second = enter("10.0.0.1").unwrap();
        assert!(enter("10.0.0.1").is_none());
        let _other = enter("10.0.0.2").unwrap();
        assert!(enter("10.0.0.3").is_none(), "total");
        drop(first);
        assert!(enter("::ffff:10.0.0.1").is_some());
    }

    #[test]
    fn nothing_is_kept_of_addresses_that_left() {
        let half_open = Arc::new(HalfOpen::new(&ListenLimits {
            half_open_per_address: 1,
            ..ListenLimits::default()
        }));
        let held = half_open.enter(address("2001:db8::1")).now_or_never().unwrap();
        assert!(
            half_open.enter(address("2001:db8::2")).now_or_never().is_none(),
            "same network"
        );
        assert_eq!(half_open.addresses(), 1);
        drop(held);
        assert_eq!(half_open.addresses(), 0);
    }
}
