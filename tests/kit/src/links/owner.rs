//! Which process a loopback connection comes from, as Linux tells it.
//!
//! `/proc/net/tcp` gives the inode of the dialler's socket, `/proc/PID/fd` which process holds that inode.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// By number.
    Member(usize),
    /// A process that is none of the members.
    Other,
}

/// Who dialled `port` from `dialler`; none when its socket is gone. Blocks for a few reads of `/proc`.
pub(super) fn of(dialler: SocketAddr, port: u16, members: &[(usize, i32)]) -> Option<Owner> {
    let mut found = None;
    for attempt in 0..ATTEMPTS {
        // a member that has only just begun may not hold it yet, so "another process" is not believed at once
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        let Some(inode) = inode(dialler.port(), port) else {
            found = None;
            continue;
        };
        let socket = format!("socket:[{inode}]");
        match members.iter().find(|(_, pid)| holds(*pid, &socket)) {
            Some((member, _)) => return Some(Owner::Member(*member)),
            None => found = Some(Owner::Other),
        }
    }
    found
}

/// The inode of the connected socket from `local` to `remote`, both on 127.0.0.1.
fn inode(local: u16, remote: u16) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (local, remote) = (in_table(local), in_table(remote));
    table.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let matches = columns.next()? == local && columns.next()? == remote;
        // state, queues, timers, retransmissions, user and time-out are between
        let inode = matches.then(|| columns.nth(6)).flatten()?;
        inode.parse().ok().filter(|inode| *inode != 0)
    })
}

/// The kernel prints the address as the number that it is in memory.
fn in_table(port: u16) -> String {
    let address = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    format!("{address:08X}:{port:04X}")
}

fn holds(pid: i32, socket: &str) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false; // the process is gone
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
        .any(|target| target.as_os_str() == socket)
}
