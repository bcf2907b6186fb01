//! What a gRPC client sees: framing, statuses, texts.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use quorate_api::Code;

use crate::kit::*;

#[tokio::test]
async fn a_unary_call_is_answered_with_exact_head_and_trailers() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answer = call(&client, PUT, b"ehello").await;
    assert_eq!(answer.http, 200);
    assert_eq!(answer.headers.len(), 1);
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(&answer.message()[..], b"hello");
    assert_eq!(answer.trailers.len(), 1);
    assert_eq!(answer.trailers["grpc-status"], "0");
    assert_eq!(edge.seen.handled(Code::Ok), 1);
}

#[tokio::test]
async fn an_error_is_nothing_but_trailers() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answer = call(&client, PUT, "f100% über".as_bytes()).await;
    assert_eq!(answer.http, 200);
    assert!(answer.data.is_empty() && answer.trailers.is_empty());
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(answer.headers["grpc-status"], "2");
    assert_eq!(answer.headers["grpc-message"], "100%25 %C3%BCber");
    assert_eq!(edge.seen.handled(Code::Unknown), 1);
}

#[tokio::test]
async fn every_reply_shape_arrives_whole() {
    let edge = start();
    let client = h2(edge.addr).await;
    assert_eq!(&call(&client, PUT, b"e").await.message()[..], b"");
    assert_eq!(&call(&client, PUT, b"sabcdefgh").await.message()[..], b"abcdefgh");
    assert_eq!(&call(&client, PUT, b"s").await.message()[..], b"");
    for len in [0, 1, 250, 16_379, 16_380, 65_530, 65_536, 1_000_000] {
        for kind in ["m", "b"] {
            let answer = call(&client, RANGE, format!("{kind}{len}").as_bytes()).await;
            assert_eq!(answer.message().len(), len, "{kind}{len}");
        }
    }
    // A body that breaks off cannot end in trailers.
    let broken = soon(try_send(&client, request(RANGE), frame(b"B100000"))).await;
    assert!(broken.unwrap_err().is_reset());
    until("the failure to be counted", || edge.seen.handled(Code::Internal) == 1).await;
}

#[tokio::test]
async fn unknown_methods_and_services_are_told_apart() {
    let edge = start();
    let client = h2(edge.addr).await;
    let text = async |path: &str| call(&client, path, b"").await.status();
    assert_eq!(
        text("/etcdserverpb.KV/Nope").await,
        (12, "unknown method Nope for service etcdserverpb.KV".into())
    );
    assert_eq!(text("/nope.KV/Put").await, (12, "unknown service nope.KV".into()));
    assert_eq!(
        text("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
            .await
            .0,
        12
    );
    assert_eq!(text("/nope").await, (12, "malformed method name: \"/nope\"".into()));
    assert_eq!(edge.seen.started.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// D22
#[tokio::test]
async fn bad_input_gets_etcds_error() {
    let edge = start();
    let client = h2(edge.addr).await;
    let status = async |path: &str, body: &'static [u8]| {
        let answer = send(&client, request(path), Bytes::from_static(body)).await;
        assert_eq!(answer.http, 200);
        answer.status()
    };
    let lease = "/etcdserverpb.Lease/LeaseKeepAlive";
    assert_eq!(status(PUT, b"").await, (2, "EOF".into()));
    assert_eq!(status(PUT, b"\0\0").await, (2, "EOF".into()));
    assert_eq!(status(PUT, b"\0\0\0\0\x09abc").await, (2, "unexpected EOF".into()));
    assert_eq!(
        status(PUT, b"\x02\0\0\0\x01e").await,
        (13, "grpc: received unexpected payload format 2".into())
    );
    assert_eq!(
        status(PUT, b"\x01\0\0\0\x01e").await,
        (13, "grpc: compressed flag set with identity or empty encoding".into())
    );
    // The announced length is judged before anything is buffered.
    let too_large = "grpc: received message larger than max (4294967295 vs. 2097152)";
    assert_eq!(status(PUT, b"\0\xff\xff\xff\xffe").await, (8, too_large.into()));
    assert_eq!(status(lease, b"\0\xff\xff\xff\xffe").await, (8, too_large.into()));
    assert_eq!(status(lease, b"").await, (0, String::new()));
    assert_eq!(status(lease, b"\0\0\0\0\x09abc").await, (13, "unexpected EOF".into()));
    assert_eq!(
        status(SNAPSHOT, b"").await,
        (
            13,
            "cardinality violation: received no request message from non-client-streaming RPC".into()
        )
    );
    // A second message of a unary call is ignored, as etcd does.
    assert_eq!(status(PUT, b"\0\0\0\0\x02ea\0\0\0\0\x02eb").await, (0, String::new()));
}

/// A message that is compressed by gzip, with its prefix.
fn gzip(message: &[u8]) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(message).unwrap();
    let packed = encoder.finish().unwrap();
    let mut out = frame(&packed).to_vec();
    out[0] = 1;
    out.into()
}

#[tokio::test]
async fn requests_may_be_compressed_by_gzip() {
    let edge = start();
    let client = h2(edge.addr).await;
    let gzipped = |path: &str| with_header(request(path), "grpc-encoding", b"gzip");
    assert_eq!(
        &send(&client, gzipped(PUT), gzip(b"epacked")).await.message()[..],
        b"packed"
    );
    assert_eq!(
        &send(&client, gzipped(PUT), frame(b"eplain")).await.message()[..],
        b"plain"
    );
    // In several frames, as noise does not pack.
    let mut noise = vec![b'e'; 1_000_000];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut noise[1..]);
    assert_eq!(send(&client, gzipped(PUT), gzip(&noise)).await.message(), noise[1..]);
    let two = Bytes::from([gzip(b"one"), frame(b"two")].concat());
    let answer = send(&client, gzipped(WATCH), two).await;
    assert_eq!(answer.data, [frame(b"one"), frame(b"two")].concat());

    let bomb = gzip(&vec![0; 2_097_153]);
    assert!(bomb.len() < 10_000);
    let too_large = "grpc: received message after decompression larger than max 2097152";
    let answer = send(&client, gzipped(PUT), bomb.clone()).await;
    assert_eq!(answer.status(), (8, too_large.into()));
    let answer = send(&client, gzipped(WATCH), bomb).await;
    assert_eq!(answer.status(), (8, too_large.into()));
    let answer = send(&client, gzipped(PUT), Bytes::from_static(b"\x01\0\0\0\x0bno gzip, no")).await;
    assert_eq!(
        answer.status(),
        (
            13,
            "grpc: failed to decompress the message: gzip: invalid header".into()
        )
    );
}

/// Many small messages that are large inside, at once: they have to wait for each other, and all are served.
#[tokio::test]
async fn inflated_messages_share_memory() {
    let edge = start();
    let client = h2(edge.addr).await;
    let small = gzip(b"w5");
    let gzipped = || with_header(request(PUT), "grpc-encoding", b"gzip");
    let calls = (0..300).map(|_| try_send(&client, gzipped(), small.clone()));
    for answer in soon(futures_util::future::join_all(calls)).await {
        assert_eq!(&answer.unwrap().message()[..], b"waited");
    }
    let large = gzip(&vec![b'f'; 2_000_000]);
    let calls = (0..100).map(|_| try_send(&client, gzipped(), large.clone()));
    for answer in soon(futures_util::future::join_all(calls)).await {
        assert_eq!(answer.unwrap().status().0, 2);
    }
}

#[tokio::test]
async fn other_compressions_are_refused_and_plain_messages_pass() {
    let edge = start();
    let client = h2(edge.addr).await;
    let snappy = || with_header(request(PUT), "grpc-encoding", b"snappy");
    let answer = send(&client, snappy(), Bytes::from_static(b"\x01\0\0\0\x01e")).await;
    assert_eq!(
        answer.status(),
        (
            12,
            "grpc: Decompressor is not installed for grpc-encoding \"snappy\"".into()
        )
    );
    assert_eq!(&send(&client, snappy(), frame(b"eplain")).await.message()[..], b"plain");
}

#[tokio::test]
async fn what_is_no_grpc_call_is_refused_by_http_status() {
    let edge = start();
    let client = h2(edge.addr).await;
    let get = Request::get("http://edge/version").body(()).unwrap();
    let answer = send(&client, get, Bytes::new()).await;
    assert_eq!(answer.http, 415);
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(answer.status(), (3, "invalid gRPC request content-type \"\"".into()));
    for kind in ["text/plain", "application/grpcx", "application/json"] {
        let answer = send(
            &client,
            with_header(request(PUT), "content-type", kind.as_bytes()),
            frame(b"e"),
        )
        .await;
        assert_eq!(answer.http, 415);
        assert_eq!(
            answer.status(),
            (3, format!("invalid gRPC request content-type \"{kind}\""))
        );
    }
    for kind in ["application/grpc+proto", "application/grpc;charset=utf-8"] {
        let answer = send(
            &client,
            with_header(request(PUT), "content-type", kind.as_bytes()),
            frame(b"ex"),
        )
        .await;
        assert_eq!(&answer.message()[..], b"x");
    }
    let mut get = request(PUT);
    *get.method_mut() = http::Method::GET;
    let answer = send(&client, get, Bytes::new()).await;
    assert_eq!(answer.http, 405);
    assert_eq!(
        answer.status(),
        (
            13,
            "Received a HEADERS frame with :method \"GET\" which should be POST".into()
        )
    );
    let answer = send(&client, with_header(request(PUT), "grpc-timeout", b"S"), frame(b"e")).await;
    assert_eq!(answer.http, 400);
    assert_eq!(
        answer.status(),
        (
            13,
            "malformed grpc-timeout: transport: timeout string is too short: \"S\"".into()
        )
    );
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_its_handler() {
    let edge = start();
    let client = h2(edge.addr).await;
    for (path, ask) in [(PUT, &b"h"[..]), (WATCH, b"hang")] {
        let began = Instant::now();
        let answer = send(&client, with_header(request(path), "grpc-timeout", b"100m"), frame(ask)).await;
        assert_eq!(answer.status(), (4, "context deadline exceeded".into()));
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
    until("handlers to be dropped", || {
        edge.seen.dropped.load(std::sync::atomic::Ordering::SeqCst) == 2
    })
    .await;
    assert_eq!(edge.seen.handled(Code::DeadlineExceeded), 2);
    let answer = send(
        &client,
        with_header(request(PUT), "grpc-timeout", b"99999999H"),
        frame(b"ex"),
    )
    .await;
    assert_eq!(&answer.message()[..], b"x");
}

/// A20, end to end: the header arrives as raw bytes and is an error for the caller.
#[tokio::test]
async fn a_header_that_is_no_text_is_an_error() {
    let edge = start();
    let client = h2(edge.addr).await;
    let answer = send(
        &client,
        with_header(request(PUT), "client-api-version", b"\xff\xfe"),
        frame(b"v"),
    )
    .await;
    assert_eq!(answer.status(), (3, "etcdserver: invalid client api version".into()));
    let answer = send(
        &client,
        with_header(request(PUT), "client-api-version", b"3.7"),
        frame(b"v"),
    )
    .await;
    assert_eq!(&answer.message()[..], b"3.7");
}

/// A41
#[tokio::test]
async fn path_without_slash_reaches_no_handler() {
    let edge = start();
    // The client library would not send such a path, so the header block is written by hand: a literal `:path`.
    let mut block = vec![0x83, 0x86, 0x04]; // POST, http, :path with literal value
    let path = b"etcdserverpb.KV/Put";
    block.push(path.len() as u8);
    block.extend_from_slice(path);
    block.extend_from_slice(b"\x0f\x10\x10application/grpc"); // content-type
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes.extend_from_slice(&[0, 0, 7, 0, 1, 0, 0, 0, 1]);
    bytes.extend_from_slice(&frame(b"ex"));
    let answer = raw(edge.addr, &bytes, Duration::from_millis(500)).await;
    assert!(!answer.is_empty());
    assert_eq!(edge.seen.started.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn many_calls_share_a_connection() {
    let edge = start();
    let client = h2(edge.addr).await;
    let calls = (0..200).map(|i| {
        let client = client.clone();
        async move {
            let text = format!("e{i}");
            let answer = call(&client, PUT, text.as_bytes()).await;
            assert_eq!(answer.message(), text[1..]);
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(edge.seen.handled(Code::Ok), 200);
}

#[tokio::test]
async fn a_message_may_come_in_any_pieces() {
    let edge = start();
    let client = h2(edge.addr).await;
    let whole = frame(&[b"e".as_slice(), &vec![7; 40_000]].concat());
    for size in [1, 3, 4, 5, 6, 1000, 16_384] {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(request(PUT), false).unwrap();
        let sending = async {
            // Only the beginning in tiny pieces: the server bounds how many small frames it takes.
            let (start, rest) = whole.split_at(20);
            for piece in start.chunks(size) {
                stream.send_data(Bytes::copy_from_slice(piece), false).unwrap();
                tokio::task::yield_now().await;
            }
            stream.send_data(Bytes::copy_from_slice(rest), true).unwrap();
        };
        sending.await;
        let answer = soon(async { collect(response.await.unwrap()).await.unwrap() }).await;
        assert_eq!(answer.message().len(), 40_000, "pieces of {size}");
    }
}
