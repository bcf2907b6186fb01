//! Bytes that no honest client sends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_server::rpc::Limits;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::kit::*;

const ENHANCE_YOUR_CALM: u8 = 0xb;

/// The reason of the last GOAWAY in what the server sent, and its text.
fn goaway(mut bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut found = None;
    while bytes.len() >= 9 {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        if bytes.len() < 9 + len {
            break;
        }
        if bytes[3] == 7 {
            found = Some((bytes[16], bytes[17..9 + len].to_vec()));
        }
        bytes = &bytes[9 + len..];
    }
    found
}

/// Sends, and returns what came until the server closed, which it must.
async fn closed_with(edge: &Edge, bytes: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = TcpStream::connect(edge.addr).await.unwrap().into_split();
    let writing = tokio::spawn(async move {
        // The server may close before all is written.
        let _ = write.write_all(&bytes).await;
        write
    });
    let (answer, closed) = read_until_closed(&mut read, Duration::from_secs(15)).await;
    assert!(closed, "the connection was left open");
    writing.abort();
    answer
}

async fn is_alive(edge: &Edge) {
    let client = h2(edge.addr).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
}

/// A39
#[tokio::test]
async fn http2_rapid_reset_is_bounded() {
    let edge = start();
    let mut bytes = [PREFACE, SETTINGS].concat();
    for i in 0..20_000u32 {
        bytes.extend(h2_frame(1, 4, 2 * i + 1, &put_headers()));
        bytes.extend(h2_frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]));
    }
    let answer = closed_with(&edge, bytes).await;
    if let Some((reason, _)) = goaway(&answer) {
        assert_eq!(reason, ENHANCE_YOUR_CALM);
    }
    let started = edge.seen.started.load(Ordering::SeqCst);
    assert!(started < 2000, "{started} handlers were started");
    until("handlers to be gone", || edge.seen.running.load(Ordering::SeqCst) == 0).await;
    is_alive(&edge).await;
}

/// A39: a client that lets each call start before it gives it up.
#[tokio::test]
async fn resets_of_running_calls_are_bounded() {
    let edge = start();
    let client = h2(edge.addr).await;
    let give_up = async |count: usize| {
        let mut open = Vec::new();
        let started = edge.seen.started.load(Ordering::SeqCst);
        for _ in 0..count {
            let mut ready = client.clone().ready().await?;
            let (response, mut stream) = ready.send_request(request(PUT), false)?;
            stream.send_data(frame(b"h"), true)?;
            open.push((response, stream));
        }
        // The connection may end instead.
        while edge.seen.started.load(Ordering::SeqCst) < started + count {
            client.clone().ready().await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for (_, stream) in &mut open {
            stream.send_reset(h2::Reason::CANCEL);
        }
        until("the calls to end", || edge.seen.running.load(Ordering::SeqCst) == 0).await;
        Ok::<_, h2::Error>(())
    };
    // What an honest client gives up in one go is no reason to end its connection.
    for _ in 0..6 {
        give_up(150).await.unwrap();
    }
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
    let ended = soon(async {
        loop {
            if let Err(error) = give_up(150).await {
                return error;
            }
        }
    })
    .await;
    assert!(ended.is_go_away() || ended.is_io(), "{ended}");
    if ended.is_go_away() {
        assert_eq!(ended.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    }
    is_alive(&edge).await;
}

/// E4: a frame or a header block that never ends.
#[tokio::test]
async fn unfinished_frames_are_cut_off() {
    let setup = Setup {
        rpc: Limits {
            message_deadline: Duration::from_millis(300),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let whole = h2_frame(1, 4, 1, &put_headers());
    for unfinished in [
        &whole[..5],
        &whole[..whole.len() - 1],
        &h2_frame(1, 0, 1, &put_headers()),
        &[h2_frame(1, 0, 1, &put_headers()), h2_frame(9, 0, 1, b"")].concat(),
    ] {
        let begun = std::time::Instant::now();
        closed_with(&edge, [PREFACE, SETTINGS, unfinished].concat()).await;
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    }
    assert_eq!(edge.seen.started.load(Ordering::SeqCst), 0);
    is_alive(&edge).await;
}

/// etcdctl 3.4 gives the endpoint's whole URL as `:authority`. These are the bytes that Go's encoder makes of it, once
/// spelt out and once as a reference to the first.
#[tokio::test]
async fn an_authority_with_a_scheme_is_as_good_as_one_without() {
    /// `http://127.0.0.1:2379`, for Maintenance.Status.
    const FIRST: &[u8] = b"\x83\x86\x45\x97\x60\xa9\x24\x88\x2d\x9d\xcb\x65\x71\xaf\xa0\x66\xa9\x25\xa8\x75\x10\xac\
        \x6e\x48\xd3\x6a\x3f\x41\x8f\x9d\x29\xae\xe3\x0c\x04\x4e\xae\x05\xc0\xb8\x6e\x09\x97\x5f\x5f\x8b\x1d\x75\
        \xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64\x40\x02\x74\x65\x86\x4d\x83\x35\x05\xb1\x1f";
    const AGAIN: &[u8] = b"\x83\x86\xc1\xc0\xbf\xbe";
    /// The same spelt out without Huffman's code.
    const PLAIN: &[u8] = b"\x83\x86\xc1\x01\x16https://127.0.0.1:2379\xbf\xbe";
    let edge = start();
    let (mut read, mut write) = TcpStream::connect(edge.addr).await.unwrap().into_split();
    let mut answers = Vec::new();
    write.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    for (n, block) in [FIRST, AGAIN, PLAIN].into_iter().enumerate() {
        let stream = 2 * n as u32 + 1;
        let head = h2_frame(1, 4, stream, block);
        // The head of the frame may come before the rest.
        write.write_all(&head[..9]).await.unwrap();
        tokio::task::yield_now().await;
        write.write_all(&head[9..]).await.unwrap();
        let text = format!("ecall {n}");
        write
            .write_all(&h2_frame(0, 1, stream, &frame(text.as_bytes())))
            .await
            .unwrap();
        let answer = h2_frame(0, 0, stream, &frame(&text.as_bytes()[1..]));
        soon(async {
            while !answers.windows(answer.len()).any(|window| window == answer) {
                let mut buffer = [0; 4096];
                let got = tokio::io::AsyncReadExt::read(&mut read, &mut buffer).await.unwrap();
                assert_ne!(got, 0, "closed after {answers:?}");
                answers.extend_from_slice(&buffer[..got]);
                // RST_STREAM of this call, which is what the library does with such an authority.
                let reset = [&[0, 0, 4, 3, 0][..], &stream.to_be_bytes()].concat();
                assert!(!answers.windows(9).any(|window| window == reset), "call {n} was reset");
            }
        })
        .await;
    }
}

/// E2
#[tokio::test]
async fn continuation_flood_is_cut_off() {
    let edge = start();
    let mut bytes = [PREFACE, SETTINGS].concat();
    bytes.extend(h2_frame(1, 0, 1, &put_headers()));
    // A literal header that never ends.
    for _ in 0..2000 {
        bytes.extend(h2_frame(
            9,
            0,
            1,
            &[b"\x00\x01a\x7f\xff\xff\xff\x07".as_slice(), &[b'x'; 16_000]].concat(),
        ));
    }
    closed_with(&edge, bytes).await;
    let mut empty = [PREFACE, SETTINGS].concat();
    empty.extend(h2_frame(1, 0, 1, &put_headers()));
    for _ in 0..100_000 {
        empty.extend(h2_frame(9, 0, 1, b""));
    }
    closed_with(&edge, empty).await;
    assert_eq!(edge.seen.started.load(Ordering::SeqCst), 0);
    is_alive(&edge).await;
}

#[tokio::test]
async fn a_client_that_pings_too_often_is_sent_away() {
    let edge = start();
    let mut bytes = [PREFACE, SETTINGS].concat();
    for _ in 0..10 {
        bytes.extend(h2_frame(6, 0, 0, b"12345678"));
    }
    let answer = closed_with(&edge, bytes).await;
    assert_eq!(goaway(&answer), Some((ENHANCE_YOUR_CALM, b"too_many_pings".to_vec())));
    is_alive(&edge).await;
}

/// A client that does not answer our pings is gone; one that does stays, however silent.
#[tokio::test]
async fn a_vanished_client_is_noticed() {
    let setup = Setup {
        rpc: Limits {
            keepalive_interval: Some(Duration::from_millis(100)),
            keepalive_timeout: Some(Duration::from_secs(1)),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let edge = setup.start();
    let client = h2(edge.addr).await;
    call(&client, PUT, b"ex").await;
    let answer = closed_with(&edge, [PREFACE, SETTINGS].concat()).await;
    // SETTINGS, and one PING that is no answer.
    assert!(answer.windows(5).any(|window| window == [0, 0, 8, 6, 0]), "{answer:?}");
    // Several pings and their answers later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let edge = start();
    let client = h2(edge.addr).await;
    let large = vec![b'x'; 100_000];
    match soon(try_send(
        &client,
        with_header(request(PUT), "token", &large),
        frame(b"e"),
    ))
    .await
    {
        Ok(answer) => assert_eq!(answer.http, 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away() || error.is_io(), "{error}"),
    }
    assert_eq!(edge.seen.started.load(Ordering::SeqCst), 0);
    is_alive(&edge).await;
}

/// E8: a window above what the protocol allows is a protocol error.
#[tokio::test]
async fn an_oversized_window_is_an_error() {
    let edge = start();
    let mut bytes = [PREFACE, SETTINGS].concat();
    bytes.extend(h2_frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]));
    let answer = closed_with(&edge, bytes).await;
    assert_eq!(goaway(&answer).map(|(reason, _)| reason), Some(3), "FLOW_CONTROL_ERROR");
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Frames that are well formed often enough to get past the first check.
fn noise(random: &mut StdRng) -> Vec<u8> {
    let mut out = Vec::new();
    match random.random_range(0..5) {
        0 => {}
        1 => out.extend_from_slice(b"GET /health?exclude=%zz&\xff HTTP/1.1\r\nHost: x\r\n"),
        2 => out.extend_from_slice(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]),
        3 => out.extend_from_slice(PREFACE),
        _ => {
            out.extend_from_slice(PREFACE);
            out.extend_from_slice(SETTINGS);
            for i in 0..random.random_range(1..30u32) {
                let stream = if random.random_bool(0.8) {
                    2 * i + 1
                } else {
                    random.random_range(0..60)
                };
                let mut payload = vec![0; random.random_range(0..40)];
                random.fill_bytes(&mut payload);
                match random.random_range(0..4) {
                    0 => out.extend(h2_frame(random.random_range(0..11), random.random(), stream, &payload)),
                    1 => out.extend(h2_frame(1, 4, stream, &[put_headers(), payload].concat())),
                    _ => {
                        out.extend(h2_frame(1, 4, stream, &put_headers()));
                        // A message with a prefix that may lie.
                        payload.splice(0..0, [0, 0, 0, 0, random.random_range(0..40)]);
                        out.extend(h2_frame(0, random.random_range(0..2), stream, &payload));
                    }
                }
            }
        }
    }
    let mut tail = vec![0; random.random_range(0..300)];
    random.fill_bytes(&mut tail);
    out.extend(tail);
    out
}

/// A44
#[tokio::test]
async fn any_request_bytes_never_panic() {
    let seed: u64 = match std::env::var("QUORATE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => 0xed6e,
    };
    println!("QUORATE_SEED={seed}");
    let default = std::panic::take_hook();
    // Panics of tasks are caught by the runtime, so they are counted here.
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current()
            .name()
            .is_some_and(|name| name.contains("any_request_bytes_never_panic"))
        {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        default(info);
    }));
    let edge = start();
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..300 {
        let bytes = noise(&mut random);
        let mut io = TcpStream::connect(edge.addr).await.unwrap();
        // The server may close while we still write.
        let _ = io.write_all(&bytes).await;
        let _ = io.shutdown().await;
        read_until_closed(&mut io, Duration::from_millis(20)).await;
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "seed {seed}, round {round}");
    }
    is_alive(&edge).await;
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "seed {seed}");
}
