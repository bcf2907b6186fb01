//! One process takes over from another that is still at work, as when a unit or a pod is replaced.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use quorate_kit::{Node, ports, wait};

use crate::support::start_with;

const SOON: Duration = Duration::from_secs(10);

fn health(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The next process waits for the directory, and takes the socket file only when the one before has ended. Neither
/// removes what is the other's. It tells systemd when it serves.
#[test]
fn directory_and_socket_go_to_the_next_process() {
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("q.sock");
    let listen = |port: u16| {
        format!(
            "--listen-client-urls=http://127.0.0.1:{port},unix://{}",
            socket.display()
        )
    };
    let mut own = start_with(|config| {
        let listen = listen(config.client_port);
        config.flag(&listen)
    });
    own.node.etcdctl().ok(&["put", "a", "1"]);

    let notified = UnixDatagram::bind(sockets.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(SOON)).unwrap();
    let mut config = own.node.config.clone();
    config.client_port = ports::free();
    config.extra.push(listen(config.client_port));
    // the same member would have the same peer port; its listener must not be what stops it
    let peers = format!("--listen-peer-urls=http://127.0.0.1:{}", ports::free());
    config.extra.push(peers);
    config
        .extra
        .push(format!("--data-dir={}", own.node.config.data_dir().display()));
    config.env.push((
        "NOTIFY_SOCKET".to_owned(),
        sockets.path().join("notify").display().to_string(),
    ));
    config.dir = own.dir.path().join("second");
    let mut second = Node::launch(config);
    wait::until("the second process to wait", SOON, || {
        second.log().contains("locked by another process").then_some(())
    });
    assert!(health(&socket).unwrap().contains(r#""health":"true""#));
    own.node.terminate();
    second.wait_ready();
    assert_eq!(second.etcdctl().ok(&["get", "a"]), "a\n1\n");
    assert!(health(&socket).unwrap().contains(r#""health":"true""#));
    let mut told = [0; 16];
    let len = notified.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"READY=1");
    second.terminate();
    assert!(!socket.exists());
}
