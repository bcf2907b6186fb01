//! Free ports of the loopback interface, from below the range that outgoing connections take theirs from.
//!
//! Members redial one that is down many times a second. With a port out of that range, such a connection could sit on
//! the port when the member comes back, or even be connected to itself.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::bail;

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address that nobody listens on and that this process has not given out lately. Processes that run at the same
/// time begin at different places.
pub fn free() -> anyhow::Result<SocketAddr> {
    let start = std::process::id().wrapping_mul(7919) % COUNT;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, (FIRST + (start + step) % COUNT) as u16));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("no port of 127.0.0.1 between {FIRST} and {} is free", FIRST + COUNT)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_is_not_given_out_twice_in_a_row() {
        assert_ne!(super::free().unwrap(), super::free().unwrap());
    }
}
