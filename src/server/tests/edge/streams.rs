//! Streaming calls: echo, half-close, reset, endings.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use h2::Reason;
use quorate_api::Code;

use crate::kit::*;

#[tokio::test]
async fn a_stream_echoes_until_half_close() {
    let edge = start();
    let client = h2(edge.addr).await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(WATCH), false).unwrap();
    stream.send_data(frame(b"one"), false).unwrap();
    let response = soon(response).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), frame(b"one"));
    // Two messages in one frame, one message in two.
    stream
        .send_data(Bytes::from([frame(b"two"), frame(b"three").slice(..3)].concat()), false)
        .unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), frame(b"two"));
    stream.send_data(frame(b"three").slice(3..), true).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), frame(b"three"));
    assert!(soon(body.data()).await.is_none());
    assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    until("the end to be counted", || edge.seen.handled(Code::Ok) == 1).await;
}

#[tokio::test]
async fn a_stream_ends_as_its_handler_says() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answer = call(&client, WATCH, b"fail").await;
    assert_eq!(answer.status(), (14, "etcdserver: no leader".into()));
    assert!(answer.trailers.is_empty(), "nothing was sent before");
    let body = Bytes::from([frame(b"x"), frame(b"fail")].concat());
    let answer = send(&client, request(WATCH), body).await;
    assert_eq!(answer.data, frame(b"x"));
    assert_eq!(answer.trailers["grpc-status"], "14");
    // A handler may end while the client still sends.
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(WATCH), false).unwrap();
    stream.send_data(frame(b"end"), false).unwrap();
    let answer = soon(async { collect(response.await.unwrap()).await.unwrap() }).await;
    assert_eq!(answer.status(), (0, String::new()));
}

#[tokio::test]
async fn messages_that_are_sent_together_count_as_several() {
    let edge = start();
    let client = h2(edge.addr).await;
    let body = Bytes::from([frame(b"batch"), frame(b"end")].concat());
    let answer = send(&client, request(WATCH), body).await;
    let want = [&b""[..], b"small", &[b'x'; 100_000]].map(frame).concat();
    assert!(answer.data == want, "{} bytes", answer.data.len());
    assert_eq!(answer.status(), (0, String::new()));
    let sent = edge.seen.sent.each_ref().map(|count| count.load(Ordering::SeqCst));
    assert_eq!(sent, [3, 5 + 100_000]);
}

#[tokio::test]
async fn client_reset_drops_the_handler() {
    let edge = start();
    let client = h2(edge.addr).await;
    for (round, (path, ask)) in [(PUT, &b"h"[..]), (WATCH, b"hang")].into_iter().enumerate() {
        let mut ready = client.clone().ready().await.unwrap();
        let (_response, mut stream) = ready.send_request(request(path), false).unwrap();
        stream.send_data(frame(ask), true).unwrap();
        until("the handler to run", || edge.seen.running.load(Ordering::SeqCst) == 1).await;
        stream.send_reset(Reason::CANCEL);
        until("the handler to be dropped", || {
            edge.seen.dropped.load(Ordering::SeqCst) == round + 1
        })
        .await;
    }
    until("both to be counted", || edge.seen.handled(Code::Canceled) == 2).await;
    // The connection is as good as before.
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
}

#[tokio::test]
async fn a_reset_reaches_a_handler_that_waits_for_room() {
    let edge = start();
    let client = h2(edge.addr).await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(SNAPSHOT), false).unwrap();
    stream.send_data(frame(b"1000 60000"), false).unwrap();
    let _unread = soon(response).await.unwrap();
    until("the handler to send", || edge.seen.pieces.load(Ordering::SeqCst) > 0).await;
    stream.send_reset(Reason::CANCEL);
    until("the call to end", || edge.seen.handled(Code::Canceled) == 1).await;
    assert_eq!(edge.seen.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_lost_connection_drops_all_handlers() {
    let edge = start();
    let client = h2(edge.addr).await;
    let mut kept = Vec::new();
    for i in 0..20 {
        let mut ready = client.clone().ready().await.unwrap();
        let (path, ask) = if i % 2 == 0 {
            (PUT, &b"h"[..])
        } else {
            (WATCH, &b"hang"[..])
        };
        let (response, mut stream) = ready.send_request(request(path), false).unwrap();
        stream.send_data(frame(ask), false).unwrap();
        kept.push((response, stream));
    }
    until("handlers to run", || edge.seen.running.load(Ordering::SeqCst) == 20).await;
    drop(kept);
    drop(client);
    until("handlers to be dropped", || {
        edge.seen.running.load(Ordering::SeqCst) == 0
    })
    .await;
    until("all to be counted", || edge.seen.handled(Code::Canceled) == 20).await;
}
