//! Shutdown: what was begun is finished, and there is an end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_server::listen::Gate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

#[tokio::test]
async fn accepted_calls_are_answered_on_stop() {
    let edge = start();
    let client = h2(edge.addr).await;
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call(&client, PUT, b"w300").await }
    });
    until("the call to run", || edge.seen.running.load(Ordering::SeqCst) == 1).await;
    let began = Instant::now();
    assert!(edge.server.shutdown(Duration::from_secs(5)).await);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(&slow.await.unwrap().message()[..], b"waited");
    assert!(TcpStream::connect(edge.addr).await.is_err(), "the port is closed");
    assert!(soon(try_send(&client, request(PUT), frame(b"ex"))).await.is_err());
}

/// A client that asks once more while its connection is being closed hears that nothing was done, and is not cut off before
/// it has heard it: what it does not know it may not repeat.
#[tokio::test]
async fn whoever_asks_into_the_end_hears_of_it() {
    const GOAWAY: u8 = 7;
    const PING: u8 = 6;
    let edge = start();
    let mut client = TcpStream::connect(edge.addr).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(SETTINGS).await.unwrap();
    // those of the server and its acknowledgement of ours
    assert_eq!(next_frame(&mut client).await.0, 4);
    let asking = async {
        let mut goaways = 0;
        while goaways < 2 {
            match next_frame(&mut client).await {
                (GOAWAY, _) => goaways += 1,
                (PING, payload) => client.write_all(&h2_frame(PING, 1, 0, &payload)).await.unwrap(),
                _ => {}
            }
        }
        for stream in [1, 3, 5] {
            let asked = h2_frame(1, 5, stream, &put_headers());
            client.write_all(&asked).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let (ended, ()) = tokio::join!(edge.server.shutdown(Duration::from_secs(5)), asking);
    assert!(ended);
    assert_eq!(edge.seen.started.load(Ordering::SeqCst), 0);
}

/// Its kind and payload.
async fn next_frame(io: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    io.read_exact(&mut payload).await.unwrap();
    (head[3], payload)
}

/// E7
#[tokio::test]
async fn exit_has_a_deadline() {
    let edge = start();
    let mut kept = Vec::new();
    for i in 0..50 {
        let client = h2(edge.addr).await;
        let mut ready = client.clone().ready().await.unwrap();
        let (path, ask) = match i % 3 {
            0 => (PUT, &b"h"[..]),
            1 => (WATCH, &b"hang"[..]),
            _ => (SNAPSHOT, &b"1000000 60000"[..]),
        };
        let (response, mut stream) = ready.send_request(request(path), false).unwrap();
        stream.send_data(frame(ask), false).unwrap();
        kept.push((client, response, stream));
    }
    // Some that never say anything, too.
    let silent: Vec<_> = futures_util::future::join_all((0..10).map(|_| TcpStream::connect(edge.addr))).await;
    until("handlers to run", || edge.seen.running.load(Ordering::SeqCst) == 50).await;
    let began = Instant::now();
    assert!(!edge.server.shutdown(Duration::from_millis(300)).await);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1500), "{took:?}");
    until("handlers to be dropped", || {
        edge.seen.running.load(Ordering::SeqCst) == 0
    })
    .await;
    drop(silent);
}

#[tokio::test]
async fn idle_connections_do_not_delay_the_end() {
    let edge = start();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = h2(edge.addr).await;
        call(&client, PUT, b"ex").await;
        clients.push(client);
    }
    let mut idle = TcpStream::connect(edge.addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut idle, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    assert!(edge.server.shutdown(Duration::from_secs(5)).await);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_member_that_never_got_ready_stops_at_once() {
    let (_key, gate) = Gate::closed();
    let setup = Setup {
        gate,
        ..Setup::default()
    };
    let edge = setup.start();
    let _waiting = TcpStream::connect(edge.addr).await.unwrap();
    assert!(edge.server.shutdown(Duration::from_secs(5)).await);
}
