//! What a stranger may cost: deadlines and caps before anything is known about it.

use std::time::{Duration, Instant};

use quorate_server::http::HttpService;
use quorate_server::listen::{Gate, ListenLimits, Service, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::Authority;
use crate::kit::*;

fn hasty() -> ListenLimits {
    ListenLimits {
        handshake_deadline: Duration::from_millis(200),
        header_deadline: Duration::from_millis(200),
        ..ListenLimits::default()
    }
}

/// Sends `bytes`, then a byte now and then, and tells how long it took the server to close without an answer.
async fn cut_off_after(edge: &Edge, bytes: &[u8], drip: &[u8]) -> Duration {
    let start = Instant::now();
    let mut io = TcpStream::connect(edge.addr).await.unwrap();
    io.write_all(bytes).await.unwrap();
    let (mut read, mut write) = io.into_split();
    let drip = drip.to_vec();
    let dripping = tokio::spawn(async move {
        for byte in drip {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
        drop(write);
    });
    let (_, closed) = read_until_closed(&mut read, Duration::from_secs(10)).await;
    dripping.abort();
    assert!(closed, "{bytes:?} was left open");
    start.elapsed()
}

/// A34
#[tokio::test]
async fn silent_connections_are_closed_and_bounded() {
    let ca = Authority::new();
    let setup = Setup {
        schemes: vec!["https"],
        tls: Some(ca.server_tls()),
        listen: ListenLimits {
            half_open_per_address: 4,
            ..hasty()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    // More than may shake hands at a time; the rest queues and is closed as well.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(edge.addr).await.unwrap());
    }
    for mut io in silent {
        let (answer, closed) = read_until_closed(&mut io, Duration::from_secs(10)).await;
        assert!(closed && answer.is_empty());
    }
    // Half a handshake is no better.
    let took = cut_off_after(&edge, &[0x16, 3, 1, 2, 0, 1, 0, 1], &[0; 50]).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let client = ca.h2(edge.addr).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
}

/// A36, E4
#[tokio::test]
async fn slow_headers_are_cut_off() {
    let setup = Setup {
        listen: hasty(),
        ..Setup::default()
    };
    let edge = setup.start();
    let drip = [b'x'; 100];
    for bytes in [
        &b""[..],
        b"G",
        b"GET /health HTTP/1.1\r\nHost: ",
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        let took = cut_off_after(&edge, bytes, if bytes.starts_with(b"GET") { &drip } else { &[] }).await;
        assert!(
            took >= Duration::from_millis(150) && took < Duration::from_secs(2),
            "{took:?}"
        );
    }
    // A second request on the same connection is under the same rule.
    let took = cut_off_after(
        &edge,
        b"GET /health HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHos",
    )
    .await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn idle_connections_stay() {
    let setup = Setup {
        listen: hasty(),
        ..Setup::default()
    };
    let edge = setup.start();
    let mut io = TcpStream::connect(edge.addr).await.unwrap();
    let client = h2(edge.addr).await;
    let ask = b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n";
    for _ in 0..2 {
        io.write_all(ask).await.unwrap();
        let mut buffer = [0; 1024];
        let n = soon(io.read(&mut buffer)).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
        assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A35
#[tokio::test]
async fn oversized_bodies_are_cut_off() {
    let edge = start();
    let post = async |head: &str, body: &[u8]| {
        let text = format!("POST /echo HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n{head}\r\n");
        let answer = raw(edge.addr, &[text.as_bytes(), body].concat(), Duration::from_secs(10)).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = post("Content-Length: 5\r\n", b"hello").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    // Announced as too long: refused before it is read.
    let answer = post("Content-Length: 65537\r\n", b"x").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Not announced: read up to the limit.
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    let answer = post("Transfer-Encoding: chunked\r\n", &chunk.repeat(5)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

/// C6
#[tokio::test]
async fn pre_auth_limits_hold() {
    let setup = Setup {
        listen: ListenLimits {
            connections_max: 3,
            ..ListenLimits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let mut served = Vec::new();
    for _ in 0..3 {
        let client = h2(edge.addr).await;
        call(&client, PUT, b"ex").await;
        served.push(client);
    }
    // The fourth waits in the kernel's queue until one of the others goes.
    let mut fourth = TcpStream::connect(edge.addr).await.unwrap();
    fourth
        .write_all(b"GET /livez HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let (answer, _) = read_until_closed(&mut fourth, Duration::from_millis(300)).await;
    assert!(answer.is_empty());
    served.pop();
    let (answer, closed) = read_until_closed(&mut fourth, Duration::from_secs(10)).await;
    assert!(closed && answer.starts_with(b"HTTP/1.1 200"));
}

/// C6: connections are counted over all ports, since they share the process's descriptors.
#[tokio::test]
async fn all_ports_share_the_places_for_connections() {
    let setup = Setup {
        listen: ListenLimits {
            connections_max: 2,
            ..ListenLimits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let second = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let second_addr = second.local_addr().unwrap();
    let http = HttpService::metrics(ops(&edge.node));
    edge.server.serve(second, Service::metrics(http, None));
    let mut served = Vec::new();
    for _ in 0..2 {
        let client = h2(edge.addr).await;
        call(&client, PUT, b"ex").await;
        served.push(client);
    }
    let mut third = TcpStream::connect(second_addr).await.unwrap();
    third
        .write_all(b"GET /livez HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let (answer, closed) = read_until_closed(&mut third, Duration::from_millis(300)).await;
    assert!(answer.is_empty() && !closed);
    served.pop();
    let (answer, closed) = read_until_closed(&mut third, Duration::from_secs(10)).await;
    assert!(closed && answer.starts_with(b"HTTP/1.1 200"));
}

/// C6
#[tokio::test]
async fn one_address_does_not_get_all_places() {
    let setup = Setup {
        listen: ListenLimits {
            connections_per_address: 2,
            ..ListenLimits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let mut served = Vec::new();
    for _ in 0..2 {
        let client = h2(edge.addr).await;
        call(&client, PUT, b"ex").await;
        served.push(client);
    }
    let mut third = TcpStream::connect(edge.addr).await.unwrap();
    let (answer, closed) = read_until_closed(&mut third, Duration::from_secs(10)).await;
    assert!(closed && answer.is_empty());
    // The others are as good as before, and who leaves makes room.
    assert_eq!(&call(&served[0], PUT, b"ex").await.message()[..], b"x");
    served.pop();
    let ask = b"GET /livez HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
    soon(async {
        while !raw(edge.addr, ask, Duration::from_secs(5))
            .await
            .starts_with(b"HTTP/1.1 200")
        {}
    })
    .await;
}

#[tokio::test]
async fn nothing_is_said_before_the_member_is_ready() {
    let (key, gate) = Gate::closed();
    let setup = Setup {
        gate,
        listen: hasty(),
        ..Setup::default()
    };
    let edge = setup.start();
    let mut io = TcpStream::connect(edge.addr).await.unwrap();
    io.write_all(b"GET /livez HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    // Longer than any deadline: those start with service.
    let (answer, closed) = read_until_closed(&mut io, Duration::from_millis(600)).await;
    assert!(answer.is_empty() && !closed);
    key.open();
    let (answer, _) = read_until_closed(&mut io, Duration::from_secs(10)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}
