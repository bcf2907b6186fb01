//! Free loopback ports.
//!
//! Ports come from below the kernel's ephemeral range, so that an outgoing connection of another test cannot take
//! one between the check here and the server's bind. Processes that run at the same time start at different places.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port on 127.0.0.1 that nobody listens on and that this process has not handed out lately.
pub fn free() -> u16 {
    let start = std::process::id().wrapping_mul(7919) % COUNT;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + (start + step) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT);
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_ports_differ() {
        assert_ne!(super::free(), super::free());
    }
}
