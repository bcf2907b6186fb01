//! Tells systemd that the member serves, so that units of type `notify` count it as started.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use std::ffi::OsStr;
use tracing::{info, warn};

/// Does nothing unless the environment says where to.
pub(super) fn ready() {
    info!("notifying init daemon");
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
        && let Err(error) = send(&socket, b"READY=1")
    {
        warn!(%error, "failed to notify init daemon");
        return;
    }
    info!("successfully notified init daemon");
}

/// A path, or with `@` in front a name that lies in no file system.
fn send(socket: &OsStr, state: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("quorate-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        send(OsStr::new(&format!("@{name}")), b"READY=1").unwrap();
        for socket in [by_path, by_name] {
            let mut got = [0; 16];
            let len = socket.recv(&mut got).unwrap();
            assert_eq!(&got[..len], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/at/all"), b"READY=1").is_err());
    }
}
