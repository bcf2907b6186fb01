//! Connections that no client would make: silent ones, slow ones, ones that only reset.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::RangeRequest;
use quorate_kit::raw::{Raw, Windows, frame};
use quorate_kit::tls::Material;
use quorate_kit::{Node, Rpc};

use crate::support::{RANGE, assert_serves, config, percentile, put_at, start};
use crate::turn::alone;

/// A34, E4: a connection that says nothing, or half a handshake, is closed, on the TLS port and on the plain one.
/// A36: so is one whose headers drip. Meanwhile others are served.
#[test]
fn silent_connections_are_closed_and_bounded() {
    const MAX: Duration = Duration::from_secs(13); // 10 s is the rule
    let (mut with_tls, dir) = config();
    with_tls.tls = Some(Material::create(&dir.path().join("tls")));
    with_tls.metrics_port = Some(quorate_kit::ports::free());
    let secure = Node::start(with_tls);
    let plain = start();
    let began = Instant::now();
    let victims: Vec<_> = [
        ("silent to TLS", secure.address(), vec![]),
        (
            "half a TLS hello",
            secure.address(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        ("silent in plaintext", plain.node.address(), vec![]),
        (
            "half a header",
            plain.node.address(),
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Sl".to_vec(),
        ),
        ("silent on the metrics port", secure.metrics_address().unwrap(), vec![]),
    ]
    .into_iter()
    .map(|(what, address, first)| std::thread::spawn(move || (what, closed_after(address, &first, None, MAX))))
    .chain(std::iter::once(std::thread::spawn({
        let address = plain.node.address();
        move || {
            (
                "dripping headers",
                closed_after(address, b"GET /health HTTP/1.1\r\nX-Slow: ", Some(b"x"), MAX),
            )
        }
    })))
    .collect();
    while began.elapsed() < Duration::from_secs(2) {
        plain.node.etcdctl().ok(&["put", "a", "1"]);
        secure.etcdctl().ok(&["put", "a", "1"]);
    }
    let mut open = Vec::new();
    for victim in victims {
        let (what, after) = victim.join().unwrap();
        if after.is_none() {
            open.push(what);
        }
    }
    assert!(open.is_empty(), "still open after {MAX:?}: {open:?}");
}

/// When the other side closed the connection; `drip` is sent every half second.
fn closed_after(address: SocketAddr, first: &[u8], drip: Option<&[u8]>, limit: Duration) -> Option<Duration> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(first).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let began = Instant::now();
    let mut buffer = [0; 1024];
    while began.elapsed() < limit {
        match stream.read(&mut buffer) {
            Ok(0) => return Some(began.elapsed()),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => return Some(began.elapsed()),
        }
        if let Some(drip) = drip
            && stream.write_all(drip).is_err()
        {
            return Some(began.elapsed());
        }
    }
    None
}

/// Clients like Go's measure their line while they receive, with a ping for each round trip: a long answer brings many,
/// and none of them is one too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_a_client_that_receives_are_welcome() {
    const WINDOW: u32 = 32 << 10;
    let own = start();
    put_at(&own.node.rpc(), "a", vec![b'v'; 1 << 20]).await;
    let stream = tokio::net::TcpStream::connect(own.node.address()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let connecting = builder.initial_window_size(WINDOW).handshake::<_, Bytes>(stream);
    let (mut requests, mut connection) = connecting.await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://quorate.test{RANGE}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = requests.send_request(request, false).unwrap();
    let range = RangeRequest {
        key: "a".into(),
        ..RangeRequest::default()
    };
    body.send_data(frame(&range.encode_to_vec()), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let (mut received, mut unmeasured, mut answered) = (0, 0, 0);
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        received += data.len();
        unmeasured += data.len();
        // two at most before the server is given room to go on
        if unmeasured >= WINDOW as usize / 4 {
            unmeasured = 0;
            pings.ping(h2::Ping::opaque()).await.unwrap();
            answered += 1;
        }
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(received > 1 << 20, "{received} bytes");
    assert!(answered >= (1 << 20) / WINDOW, "{answered} pings");
    connection.abort();
}

/// A39: streams opened and reset at once, as fast as they go, cost the attacker's connection and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_rapid_reset_is_bounded() {
    let _turn = alone();
    let mut own = start();
    put_at(&own.node.rpc(), "a", "1").await;
    let before = own.node.resident_bytes();
    let address = own.node.address();
    let attack = tokio::spawn(async move {
        let mut sent = 0u32;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let Ok(mut raw) = Raw::connect(address, Windows::default()).await else {
                continue;
            };
            for _ in 0..10_000 {
                if Instant::now() > until || raw.reset_one(RANGE).await.is_err() {
                    break;
                }
                sent += 1;
            }
        }
        sent
    });
    let rpc: Rpc = own.node.rpc();
    let mut took = Vec::new();
    while !attack.is_finished() {
        let asked = Instant::now();
        put_at(&rpc, "a", "2").await;
        took.push(asked.elapsed());
    }
    let sent = attack.await.unwrap();
    let p99 = percentile(&mut took, 99);
    let grown = own.node.peak_resident_bytes().saturating_sub(before);
    println!(
        "{sent} resets, {} puts meanwhile, p99 {p99:?}, {} MiB more",
        took.len(),
        grown >> 20
    );
    assert!(sent > 1_000, "only {sent} resets were sent");
    assert!(p99 < Duration::from_secs(1), "puts took {p99:?} meanwhile");
    assert!(grown < 256 << 20, "{} MiB more memory", grown >> 20);
    assert_serves(&mut own.node).await;
}
