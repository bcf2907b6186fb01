//! Clients that read slowly or not at all.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_server::rpc::Limits;
use tokio::net::TcpStream;

use crate::kit::*;

/// Sends `count` unary calls and keeps their answers unread.
async fn unread(client: &H2, count: usize, ask: &[u8]) -> Vec<h2::client::ResponseFuture> {
    let mut answers = Vec::new();
    for _ in 0..count {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(request(RANGE), false).unwrap();
        stream.send_data(frame(ask), true).unwrap();
        answers.push(response);
    }
    answers
}

/// Waits until a counter stands still.
async fn settled(read: impl Fn() -> usize) -> usize {
    let mut last = read();
    let mut still = 0;
    while still < 20 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let now = read();
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    last
}

/// E2: bodies are produced as they are read, and few at a time.
#[tokio::test]
async fn unread_answers_are_bounded() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answers = unread(&client, 1000, b"b1000000").await;
    let pieces = settled(|| edge.seen.pieces.load(Ordering::SeqCst)).await;
    // 64 KiB of window, and eight bodies with a piece of 16 KiB in hand.
    assert!(
        (1..=20).contains(&pieces),
        "{pieces} pieces of 16 KiB for a client that reads nothing"
    );
    // Whoever reads gets everything. Those that nobody wants any more make room.
    let mut answers = answers.into_iter();
    let first = answers.next().unwrap();
    drop(answers);
    let answer = soon(async { collect(first.await.unwrap()).await.unwrap() }).await;
    assert_eq!(answer.message().len(), 1_000_000);
}

/// An answer pins what it reads, so one that nobody takes ends.
#[tokio::test]
async fn an_answer_that_is_never_read_ends() {
    let mut setup = Setup::default();
    setup.rpc.stall_deadline = std::time::Duration::from_millis(200);
    let edge = setup.start();
    let client = h2(edge.addr).await;
    let _answers = unread(&client, 20, b"b1000000").await;
    let ended = async {
        while edge.seen.handled(quorate_api::Code::DeadlineExceeded) < 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(ended).await;
}

/// Nor may it be taken so slowly that it lasts for days.
#[tokio::test]
async fn an_answer_that_is_read_by_drops_ends() {
    let mut setup = Setup::default();
    setup.rpc.stall_deadline = std::time::Duration::from_secs(1);
    setup.rpc.body_bytes_per_sec_min = 1 << 20;
    let edge = setup.start();
    let client = h2(edge.addr).await;
    let answer = unread(&client, 1, b"b4000000").await.remove(0);
    let mut body = soon(answer).await.unwrap().into_body();
    let reading = async {
        // A few KiB at a time, never long without any.
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(reading).await;
    until("the call to end", || {
        edge.seen.handled(quorate_api::Code::DeadlineExceeded) == 1
    })
    .await;
}

/// E2: whole messages wait in memory, so calls are not started while too much waits.
#[tokio::test]
async fn unread_messages_hold_back_further_calls() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answers = unread(&client, 1000, b"m60000").await;
    let started = settled(|| edge.seen.started.load(Ordering::SeqCst)).await;
    assert!((2..=16).contains(&started), "{started} of 1000 calls started");
    // All at once: whoever reads one after the other leaves the window to those that it does not read.
    let reading = answers
        .into_iter()
        .map(|response| async { collect(response.await.unwrap()).await.unwrap() });
    for answer in soon(futures_util::future::join_all(reading)).await {
        assert_eq!(answer.message().len(), 60_000);
    }
}

/// E2: a client with endless windows that does not read its socket.
#[tokio::test]
async fn an_unread_socket_is_bounded_whatever_the_window() {
    let edge = start();
    let io = TcpStream::connect(edge.addr).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size((1 << 31) - 1)
        .initial_connection_window_size((1 << 31) - 1);
    let (mut client, mut connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
    // Drive the connection just long enough to send the requests; then nobody reads.
    let mut answers = Vec::new();
    let sending = async {
        for _ in 0..200 {
            client = client.clone().ready().await.unwrap();
            let (response, mut stream) = client.send_request(request(SNAPSHOT), false).unwrap();
            stream.send_data(frame(b"100000 60000"), true).unwrap();
            answers.push(response);
        }
        until("all calls to start", || edge.seen.started.load(Ordering::SeqCst) == 200).await;
    };
    tokio::select! {
        () = sending => {}
        result = &mut connection => panic!("{result:?}"),
    }
    let pieces = settled(|| edge.seen.pieces.load(Ordering::SeqCst)).await;
    // What the kernel's buffers took (a few MiB) and 512 KiB in ours: far from 200 × 100,000 messages.
    assert!(
        pieces < 500,
        "{pieces} messages of 60 KB were taken for a client that reads nothing"
    );
}

#[tokio::test]
async fn a_stalled_stream_does_not_stall_its_neighbours() {
    let edge = start();
    let io = TcpStream::connect(edge.addr).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_connection_window_size(8 << 20)
        .data_frame_budget(1 << 30);
    let client = h2_with(io, &builder).await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(SNAPSHOT), false).unwrap();
    stream.send_data(frame(b"1000 60000"), true).unwrap();
    let stalled = soon(response).await.unwrap();
    settled(|| edge.seen.pieces.load(Ordering::SeqCst)).await;
    for len in [10, 100_000, 1_000_000] {
        for kind in ["m", "b"] {
            let answer = call(&client, RANGE, format!("{kind}{len}").as_bytes()).await;
            assert_eq!(answer.message().len(), len);
        }
    }
    let answer = soon(collect(stalled)).await.unwrap();
    assert_eq!(answer.data.len(), 1000 * 60_005);
    assert_eq!(answer.trailers["grpc-status"], "0");
}

/// All answers are read at once, over windows of 64 KiB: more of them than there is window, and more than the leases of a
/// connection, so that those which have the one and wait for the other must not stand in each other's way.
#[tokio::test]
async fn many_answers_share_a_small_window() {
    let edge = start();
    let client = h2(edge.addr).await;
    let read = async |path: &str, ask: &str, len: usize| {
        let answer = try_send(&client, request(path), frame(ask.as_bytes())).await.unwrap();
        assert_eq!(answer.trailers["grpc-status"], "0");
        assert_eq!(answer.data.len(), len);
    };
    for _ in 0..3 {
        soon(futures_util::future::join_all(
            (0..300).map(|_| read(RANGE, "m16000", 16_005)),
        ))
        .await;
    }
    let mixed = (0..300).map(async |n| match n % 30 {
        7 => read(RANGE, "m1000000", 1_000_005).await,
        8 => read(RANGE, "b1000000", 1_000_005).await,
        9 => read(SNAPSHOT, "20 60000", 20 * 60_005).await,
        _ => read(RANGE, "m16000", 16_005).await,
    });
    soon(futures_util::future::join_all(mixed)).await;
}

/// E2: what finds the bytes of a body takes memory as well, so calls are not started while many bodies wait.
#[tokio::test]
async fn unread_bodies_hold_back_further_calls() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answers = unread(&client, 1000, b"b100000").await;
    let started = settled(|| edge.seen.started.load(Ordering::SeqCst)).await;
    assert!((2..=40).contains(&started), "{started} of 1000 calls started");
    let reading = answers
        .into_iter()
        .map(|response| async { collect(response.await.unwrap()).await.unwrap() });
    for answer in soon(futures_util::future::join_all(reading)).await {
        assert_eq!(answer.message().len(), 100_000);
    }
}

/// Calls whose headers take more than a connection may are refused, and counted no more once they end.
#[tokio::test]
async fn headers_of_open_calls_are_bounded() {
    let edge = start();
    let client = h2(edge.addr).await;
    let large = vec![b'x'; 40_000];
    let mut open = Vec::new();
    for n in 0..300 {
        // No two alike, since equal ones could stand for each other.
        let token = [&large[..], format!("{n}").as_bytes()].concat();
        let mut ready = client.clone().ready().await.unwrap();
        let call = with_header(request(PUT), "token", &token);
        let (response, mut stream) = ready.send_request(call, false).unwrap();
        stream.send_data(frame(b"h"), true).unwrap();
        open.push((response, stream));
    }
    let started = settled(|| edge.seen.started.load(Ordering::SeqCst)).await;
    assert!((150..=220).contains(&started), "{started} of 300 calls started");
    let (last, _stream) = open.pop().unwrap();
    let answer = soon(async { collect(last.await.unwrap()).await.unwrap() }).await;
    let text = "too many calls at a time on this connection, try again later";
    assert_eq!(answer.status(), (8, text.into()));
    drop(open);
    until("the calls to end", || edge.seen.running.load(Ordering::SeqCst) == 0).await;
    let answer = send(&client, with_header(request(PUT), "token", &large), frame(b"ex")).await;
    assert_eq!(&answer.message()[..], b"x");
}

/// C6: partial request messages share a budget. Who finds none left waits for it.
#[tokio::test]
async fn partial_messages_are_bounded() {
    let setup = Setup {
        rpc: Limits {
            partial_bytes_max: 3_000_000,
            message_deadline: std::time::Duration::from_millis(1000),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let client = h2(edge.addr).await;
    let announce = async || {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(request(PUT), false).unwrap();
        // Announces 1 MiB and sends a byte of it.
        stream.send_data(Bytes::from_static(b"\0\0\x10\0\0e"), false).unwrap();
        (response, stream)
    };
    let mut held = vec![announce().await, announce().await];
    until("both to be read", || edge.seen.started.load(Ordering::SeqCst) == 2).await;
    let large = vec![b'e'; 1_000_000];
    let third = try_send(&client, request(PUT), frame(&large));
    let mut third = std::pin::pin!(third);
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut third).await;
    assert!(early.is_err(), "there is no memory for it");
    // One that is given up makes room.
    drop(held.pop());
    assert_eq!(soon(third).await.unwrap().message().len(), 999_999);
    // Who does not go on is cut off, and its share is free again.
    for (response, _stream) in held {
        let answer = soon(async { collect(response.await.unwrap()).await.unwrap() }).await;
        assert_eq!(answer.status(), (4, "context deadline exceeded".into()));
    }
    let larger = vec![b'e'; 2_000_000];
    assert_eq!(call(&client, PUT, &larger).await.message().len(), 1_999_999);
}

/// More than the share of a connection at once: those that wait leave the others window enough to get on.
#[tokio::test]
async fn a_burst_of_large_requests_is_served() {
    let edge = start();
    let client = h2(edge.addr).await;
    let large = frame(&vec![b'f'; 1_000_000]);
    let burst = (0..100).map(|_| try_send(&client, request("/etcdserverpb.KV/DeleteRange"), large.clone()));
    for answer in soon(futures_util::future::join_all(burst)).await {
        // The toy fails with the text that it got.
        assert_eq!(answer.unwrap().status().0, 2);
    }
}

/// A call with one message waits for it no longer than for the rest of one that has begun. A stream may be silent.
#[tokio::test]
async fn a_message_that_never_comes_is_not_waited_for() {
    let setup = Setup {
        rpc: Limits {
            message_deadline: std::time::Duration::from_millis(200),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let client = h2(edge.addr).await;
    let open = async |path: &str| {
        let mut ready = client.clone().ready().await.unwrap();
        ready.send_request(request(path), false).unwrap()
    };
    let (watch, mut watching) = open(WATCH).await;
    for path in [PUT, SNAPSHOT] {
        let (response, _stream) = open(path).await;
        let answer = soon(async { collect(response.await.unwrap()).await.unwrap() }).await;
        assert_eq!(answer.status(), (4, "context deadline exceeded".into()), "{path}");
    }
    watching.send_data(frame(b"still here"), true).unwrap();
    let answer = soon(async { collect(watch.await.unwrap()).await.unwrap() }).await;
    assert_eq!(answer.data, frame(b"still here"));
}

/// Requests on HTTP/2 that are no gRPC: few at a time, since an answer is whole in memory until it is sent.
#[tokio::test]
async fn unread_http_answers_are_bounded() {
    let ca = crate::certificates::Authority::new();
    let mut setup = Setup {
        schemes: vec!["https"],
        tls: Some(ca.server_tls()),
        ..Setup::default()
    };
    setup.rpc.stall_deadline = std::time::Duration::from_secs(3);
    let edge = setup.start();
    let client = ca.h2(edge.addr).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        let mut ready = client.clone().ready().await.unwrap();
        let get = http::Request::get("https://edge/large").body(()).unwrap();
        answers.push(ready.send_request(get, true).unwrap().0);
    }
    let started = settled(|| edge.seen.started.load(Ordering::SeqCst)).await;
    assert!((2..=10).contains(&started), "{started} of 100 requests are served");
    // Those that nobody reads end, and let the others have their turn.
    until("more to be served", || edge.seen.started.load(Ordering::SeqCst) > 12).await;
    drop(answers);
}
