//! Every fault between a dialler and a listener of this process, without a cluster.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::*;
use crate::wait::until_async;

/// What arrives at all arrives much sooner.
const SOON: Duration = Duration::from_secs(5);
/// What has not come by then is held back.
const NEVER: Duration = Duration::from_millis(150);

/// This process is member 0, which dials, and listens in the place of member 1, which dials nobody.
struct Pairing {
    links: Links,
    listener: TcpListener,
    port: u16,
}

impl Pairing {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut links = Links::new();
        let target = listener.local_addr().unwrap().port();
        let port = links.put_before(1, target, RunningPid::default());
        links.put_before(0, ports::free(), RunningPid::of(std::process::id()));
        Self { links, listener, port }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Member 0's end and member 1's.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let dialled = self.dial().await;
        let (accepted, _) = timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        (dialled, accepted)
    }
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn hears(stream: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, text.as_bytes());
}

/// Neither bytes nor an end.
async fn hears_nothing(stream: &mut TcpStream) {
    let heard = timeout(NEVER, stream.read_u8()).await;
    assert!(heard.is_err(), "{heard:?} came through");
}

async fn is_closed(stream: &mut TcpStream) {
    let heard = timeout(SOON, stream.read_u8()).await.unwrap();
    assert!(heard.is_err(), "{heard:?} came through");
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    say(&mut zero, "request").await;
    hears(&mut one, "request").await;
    say(&mut one, "answer").await;
    hears(&mut zero, "answer").await;
    let counted = || async {
        let carried = [(0, 1), (1, 0)].map(|(from, to)| pairing.links.carried_bytes(from, to));
        (carried == [7, 6]).then_some(())
    };
    until_async("what passed to be counted", SOON, counted).await;
    drop(zero);
    is_closed(&mut one).await;
}

#[tokio::test]
async fn a_cut_stops_one_way_until_it_heals() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    say(&mut zero, "before").await;
    hears(&mut one, "before").await;
    pairing.links.cut(0, 1);
    say(&mut zero, "held").await;
    hears_nothing(&mut one).await;
    say(&mut one, "back").await;
    hears(&mut zero, "back").await;
    pairing.links.heal(0, 1);
    hears(&mut one, "held").await;
    pairing.links.cut(1, 0);
    say(&mut one, "held too").await;
    hears_nothing(&mut zero).await;
    say(&mut zero, "there").await;
    hears(&mut one, "there").await;
}

/// Whoever is shut off is only so where others dial.
#[tokio::test]
async fn a_shut_port_stops_what_comes_in_by_it_and_the_answers() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    pairing.links.shut(0);
    say(&mut zero, "request").await;
    hears(&mut one, "request").await;
    pairing.links.shut(1);
    say(&mut zero, "held").await;
    hears_nothing(&mut one).await;
    say(&mut one, "held too").await;
    hears_nothing(&mut zero).await;
    pairing.links.heal_all();
    hears(&mut one, "held").await;
    hears(&mut zero, "held too").await;
}

#[tokio::test]
async fn an_end_beyond_a_cut_is_not_heard() {
    let pairing = Pairing::new().await;
    let (zero, mut one) = pairing.connect().await;
    pairing.links.cut(0, 1);
    drop(zero);
    hears_nothing(&mut one).await;
    pairing.links.heal(0, 1);
    is_closed(&mut one).await;
}

#[tokio::test]
async fn a_connection_dialled_into_a_cut_hangs() {
    let pairing = Pairing::new().await;
    pairing.links.cut(0, 1);
    let mut zero = pairing.dial().await;
    say(&mut zero, "hello").await;
    assert!(timeout(NEVER, pairing.listener.accept()).await.is_err());
    hears_nothing(&mut zero).await;
    pairing.links.heal(0, 1);
    let (mut one, _) = timeout(SOON, pairing.listener.accept()).await.unwrap().unwrap();
    hears(&mut one, "hello").await;
}

#[tokio::test]
async fn a_reset_closes_what_is_there_and_a_refusal_what_comes() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    pairing.links.reset(1, 0);
    is_closed(&mut zero).await;
    is_closed(&mut one).await;
    let (mut zero, mut one) = pairing.connect().await;
    say(&mut zero, "again").await;
    hears(&mut one, "again").await;
    pairing.links.refuse(0, 1);
    is_closed(&mut zero).await;
    is_closed(&mut one).await;
    let mut refused = pairing.dial().await;
    is_closed(&mut refused).await;
    pairing.links.heal_all();
    pairing.connect().await;
}

#[tokio::test]
async fn nobody_listening_is_a_closed_connection() {
    let pairing = Pairing::new().await;
    let Pairing { listener, port, links } = pairing;
    drop(listener);
    let mut refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    is_closed(&mut refused).await;
    drop(links);
}

#[tokio::test]
async fn a_flip_is_of_one_bit() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    pairing.links.flip_all(1);
    for _ in 0..5 {
        zero.write_all(&[0; 32]).await.unwrap();
        let mut heard = [0_u8; 32];
        timeout(SOON, one.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
}

#[tokio::test]
async fn delay_is_one_way_and_keeps_the_order() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    let delay = Duration::from_secs(1);
    pairing.links.delay(0, 1, delay, Duration::from_millis(20));
    let began = Instant::now();
    for part in ["a", "b", "c", "d"] {
        say(&mut zero, part).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    say(&mut one, "back").await;
    hears(&mut zero, "back").await;
    let back = began.elapsed();
    hears(&mut one, "abcd").await;
    let forth = began.elapsed();
    assert!(back < delay && delay <= forth, "{back:?} back, {forth:?} forth");
}

#[tokio::test]
async fn a_rate_holds_for_all_connections_together() {
    let pairing = Pairing::new().await;
    let (mut zero, mut one) = pairing.connect().await;
    let (mut zero_too, mut one_too) = pairing.connect().await;
    pairing.links.throttle(0, 1, 400_000);
    let began = Instant::now();
    let bytes = "x".repeat(60_000);
    tokio::join!(
        say(&mut zero, &bytes),
        say(&mut zero_too, &bytes),
        hears(&mut one, &bytes),
        hears(&mut one_too, &bytes)
    );
    let took = began.elapsed();
    // 120,000 bytes at 400,000/s, less the first part, which does not wait
    assert!(took >= Duration::from_millis(280), "{took:?}");
}

/// The pair that nobody sets anything on.
#[tokio::test]
async fn other_processes_pass_whatever_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut links = Links::new();
    let port = links.put_before(1, listener.local_addr().unwrap().port(), RunningPid::default());
    links.put_before(0, ports::free(), RunningPid::default());
    links.isolate(1);
    let mut outside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    say(&mut outside, "hello").await;
    let (mut one, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    hears(&mut one, "hello").await;
}
