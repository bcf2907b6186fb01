//! What a member asks others at its start, of a member like itself and of things that are none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_api::ClusterId;
use quorate_api::proto::etcdserverpb::Member;
use quorate_server::bootstrap::peers::http::HttpPeers;
use quorate_server::bootstrap::peers::{Failure, Peers, Reply};
use quorate_server::config::{self, Url};
use quorate_server::http::{HttpService, Membership};
use quorate_server::listen::{Server, Service, bind};
use quorate_server::peer::dial::Dialer;

use crate::kit::*;

const SOON: Duration = Duration::from_secs(10);

fn dialer() -> Dialer {
    let config = config::load(["quorate".into()].into_iter(), std::iter::empty())
        .unwrap()
        .config;
    Dialer::new(&config).unwrap()
}

/// Asks from a thread that may block, as a start does.
async fn ask(urls: Vec<String>, path: &'static str, patience: Duration) -> Vec<(Url, Result<Reply, Failure>)> {
    let peers = HttpPeers::new(tokio::runtime::Handle::current(), dialer());
    let urls: Vec<_> = urls.iter().map(|url| Url::parse(url).unwrap()).collect();
    let asking = move || peers.get(&urls, path, patience).collect();
    tokio::task::spawn_blocking(asking).await.unwrap()
}

async fn ask_one(url: String, path: &'static str) -> Result<Reply, Failure> {
    ask(vec![url], path, SOON).await.remove(0).1
}

/// Sends `answer` to whoever connects and has asked, then ends, or keeps the connection.
fn answers_with(answer: Vec<u8>, ends: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer); // may be given up by the other side
            if !ends {
                kept.push(stream);
            }
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_peer_port_is_understood() {
    let node = Arc::new(Node::default());
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", dir.path().join("peer.sock").display());
    let server = Server::new(Default::default());
    let mut urls = Vec::new();
    for url in ["http://127.0.0.1:0", socket.as_str()] {
        let binding = bind(&[url.parse().unwrap()], Default::default()).unwrap().remove(0);
        urls.push(match binding.local_addr() {
            Some(addr) => format!("http://{addr}"),
            None => socket.clone(),
        });
        server.serve(binding, Service::peer(peer_port(), HttpService::peer(ops(&node)), None));
    }
    // Members that start at the same time ask each other before they know who they are.
    let began = Instant::now();
    for (url, answer) in ask(urls.clone(), "/members", SOON).await {
        assert!(matches!(answer, Err(Failure::Status(status)) if status == 503), "{url}");
    }
    assert!(began.elapsed() < SOON / 2, "nobody waits for anybody");

    *node.membership.lock() = Some(Membership {
        cluster: ClusterId(0xc1),
        members: vec![Member {
            id: u64::MAX,
            peer_ur_ls: vec![urls[0].clone()],
            ..Default::default()
        }],
    });
    for (url, answer) in ask(urls.clone(), "/members", SOON).await {
        let reply = answer.unwrap_or_else(|failure| panic!("{url}: {failure:?}"));
        assert_eq!(reply.cluster.as_deref(), Some("c1"));
        assert_eq!(reply.quorate.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        let wanted = format!(r#"[{{"id":{},"peerURLs":["{}"]}}]"#, u64::MAX, urls[0]);
        assert_eq!(reply.body, wanted + "\n");
    }
    let reply = ask_one(urls[0].clone(), "/version").await.unwrap();
    assert!(reply.body.starts_with(br#"{"etcdserver":"3.7.1""#));
    assert!(server.shutdown(Duration::from_secs(1)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_have_their_reason() {
    let head = "HTTP/1.1 200 OK\r\n";
    let redirect = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let endless = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{}",
        "100000\r\n".to_owned() + &"x".repeat(1 << 20)
    );
    let long = format!("{head}Content-Length: 99999999\r\n\r\n{}", "x".repeat(5 << 20));
    let short = format!("{head}Content-Length: 10\r\n\r\nshort");
    let large_head = format!("{head}X: {}\r\n\r\n", "x".repeat(1 << 20));
    for (what, answer, wanted) in [
        ("a redirect", redirect.to_owned(), "Status(302)"),
        ("nothing", String::new(), "Exchange("),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "Exchange("),
        ("a broken chunk", endless, "Body("),
        ("a body that is too long", long, "Body("),
        ("a body that breaks off", short, "Body("),
        ("a head that is too long", large_head, "Exchange("),
    ] {
        let addr = answers_with(answer.into_bytes(), true);
        let failure = ask_one(format!("http://{addr}"), "/members").await.unwrap_err();
        assert!(format!("{failure:?}").starts_with(wanted), "{what}: {failure:?}");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = ask_one(format!("http://{free}"), "/members").await.unwrap_err();
    assert!(matches!(failure, Failure::Connect(_)), "{failure:?}");
}

/// One that hangs keeps nobody waiting for longer than the deadline, and nobody else at all.
#[tokio::test(flavor = "multi_thread")]
async fn all_are_asked_at_once_and_none_for_ever() {
    let patience = Duration::from_secs(1);
    let good = "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: c1\r\nContent-Length: 2\r\n\r\n[]";
    let silent = format!("http://{}", answers_with(Vec::new(), false));
    let slow = format!(
        "http://{}",
        answers_with(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[".to_vec(), false)
    );
    let good = format!("http://{}", answers_with(good.as_bytes().to_vec(), false));
    let began = Instant::now();
    let answers = ask(vec![silent, slow, good.clone()], "/members", patience).await;
    let took = began.elapsed();
    assert!(took >= patience && took < 3 * patience, "{took:?}");
    assert_eq!(answers[0].0.raw, good, "whoever answers comes first");
    assert_eq!(answers[0].1.as_ref().unwrap().cluster.as_deref(), Some("c1"));
    for (url, answer) in &answers[1..] {
        assert!(matches!(answer, Err(Failure::TimedOut(_))), "{url}: {answer:?}");
    }
}
