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

/// C6: partial request messages share a budget.
#[tokio::test]
async fn partial_messages_are_bounded() {
    let setup = Setup {
        rpc: Limits {
            partial_bytes_max: 3_000_000,
            message_deadline: std::time::Duration::from_millis(300),
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
    let held = [announce().await, announce().await];
    until("both to be read", || edge.seen.started.load(Ordering::SeqCst) == 2).await;
    let (third, _stream) = announce().await;
    let answer = soon(async { collect(third.await.unwrap()).await.unwrap() }).await;
    assert_eq!(answer.status().0, 8);
    // Who does not go on is cut off, and its share is free again.
    for (response, _stream) in held {
        let answer = soon(async { collect(response.await.unwrap()).await.unwrap() }).await;
        assert_eq!(answer.status(), (4, "context deadline exceeded".into()));
    }
    let large = vec![b'e'; 1_000_000];
    assert_eq!(call(&client, PUT, &large).await.message().len(), 999_999);
}
