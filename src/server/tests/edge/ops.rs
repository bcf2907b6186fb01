//! The endpoints for probes, scrapers and people, byte by byte.

use std::sync::atomic::Ordering;

use quorate_api::ClusterId;
use quorate_api::proto::etcdserverpb::Member;
use quorate_server::http::{Alarm, Cors, HostWhitelist, HttpService, Membership};
use quorate_server::listen::{Server, Service, bind};

use crate::kit::*;

fn assert_plain(head: &str, status: &str) {
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    assert!(head.contains("Content-Type: text/plain; charset=utf-8"), "{head}");
}

#[tokio::test]
async fn health_is_etcds_to_the_byte() {
    let edge = start();
    let answer = http1(edge.addr, "GET", "/health", "").await;
    let (head, body) = split(&answer);
    assert_plain(head, "200 OK");
    assert!(head.contains("Content-Length: 29"), "{head}");
    assert!(!head.contains("nosniff"), "{head}");
    assert_eq!(body, r#"{"health":"true","reason":""}"#);

    let reason = async |target: &str| {
        let answer = http1(edge.addr, "GET", target, "").await;
        let (head, body) = split(&answer);
        if head.starts_with("HTTP/1.1 200") {
            return String::new();
        }
        assert_plain(head, "503");
        assert!(head.contains("X-Content-Type-Options: nosniff"), "{head}");
        let body = body.strip_suffix("\n").unwrap();
        let body = body.strip_prefix(r#"{"health":"false","reason":""#).unwrap();
        body.strip_suffix("\"}").unwrap().to_owned()
    };
    edge.node.read_fails.store(true, Ordering::SeqCst);
    assert_eq!(reason("/health").await, "RANGE ERROR:etcdserver: request timed out");
    assert_eq!(reason("/health?serializable=true").await, "");
    assert_eq!(
        reason("/health?serializable=1").await,
        "RANGE ERROR:etcdserver: request timed out"
    );
    edge.node.read_hangs.store(true, Ordering::SeqCst);
    assert_eq!(reason("/health").await, "RANGE ERROR:context deadline exceeded");
    edge.node.no_leader.store(true, Ordering::SeqCst);
    assert_eq!(reason("/health").await, "RAFT NO LEADER");
    assert_eq!(reason("/health?serializable=true").await, "");
    *edge.node.alarms.lock() = vec![Alarm::NoSpace, Alarm::Corrupt];
    assert_eq!(reason("/health").await, "ALARM NOSPACE");
    assert_eq!(reason("/health?exclude=NOSPACE").await, "ALARM CORRUPT");
    assert_eq!(
        reason("/health?exclude=NOSPACE&exclude=CORRUPT&serializable=true").await,
        ""
    );
    assert_eq!(edge.node.health[1].load(Ordering::SeqCst), 4);
    assert_eq!(edge.node.health[0].load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn probes_list_their_checks() {
    let edge = start();
    let get = async |target: &str| {
        let answer = http1(edge.addr, "GET", target, "").await;
        let (head, body) = split(&answer);
        assert!(head.contains("X-Content-Type-Options: nosniff"), "{head}");
        (head[9..12].to_owned(), body.to_owned())
    };
    let ok = |body: &str| ("200".to_owned(), body.to_owned());
    assert_eq!(get("/livez").await, ok("ok\n"));
    assert_eq!(get("/livez?verbose").await, ok("[+]serializable_read ok\nok\n"));
    assert_eq!(get("/livez?exclude=serializable_read&verbose").await, ok("ok\n"));
    assert_eq!(get("/livez?exclude=nonsense").await, ok("ok\n"));
    assert_eq!(
        get("/readyz/linearizable_read?verbose").await,
        ok("[+]linearizable_read ok\nok\n")
    );
    assert_eq!(get("/readyz/nonsense").await.0, "404");
    assert_eq!(get("/livez/linearizable_read").await.0, "404");
    assert_eq!(get("/readyz/").await.0, "404");
    edge.node.read_fails.store(true, Ordering::SeqCst);
    edge.node.learner.store(true, Ordering::SeqCst);
    *edge.node.alarms.lock() = vec![Alarm::Corrupt];
    let (status, body) = get("/readyz").await;
    assert_eq!(status, "503");
    let mut lines: Vec<_> = body.strip_suffix("\n\n").unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "[+]serializable_read ok",
            "[-]data_corruption failed: alarm activated: CORRUPT",
            "[-]linearizable_read failed: etcdserver: request timed out",
            "[-]non_learner failed: not supported for learner",
        ]
    );
    assert_eq!(get("/livez").await, ok("ok\n"));
    assert_eq!(
        get("/readyz?exclude=data_corruption&exclude=linearizable_read&exclude=non_learner").await,
        ok("ok\n")
    );
    assert_eq!(edge.node.checks[0].load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn version_metrics_and_debug_are_served() {
    let edge = start();
    let answer = http1(edge.addr, "GET", "/version", "").await;
    let (head, body) = split(&answer);
    assert!(head.contains("Content-Type: application/json\r\n"), "{head}");
    assert_eq!(
        body,
        r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#
    );
    edge.node.no_leader.store(true, Ordering::SeqCst);
    let answer = http1(edge.addr, "GET", "/version", "").await;
    assert!(split(&answer).1.contains(r#""etcdcluster":"not_decided""#));
    for method in ["GET", "POST"] {
        let answer = http1(edge.addr, method, "/metrics", "").await;
        let (head, body) = split(&answer);
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert_eq!(body, "up 1\n");
    }
    let answer = http1(edge.addr, "GET", "/debug/vars", "").await;
    let vars: serde_json::Value = serde_json::from_str(split(&answer).1).unwrap();
    let keys: Vec<_> = vars.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["cmdline", "file_descriptor_limit", "memstats", "raft.status"]);
    assert_eq!(
        vars["cmdline"].as_array().unwrap().len(),
        1,
        "arguments may hold secrets"
    );
}

#[tokio::test]
async fn wrong_methods_and_paths_are_refused_as_etcd_does() {
    let edge = start();
    for target in ["/health", "/livez", "/readyz/non_learner", "/version", "/debug/vars"] {
        for method in ["POST", "HEAD", "DELETE"] {
            let answer = http1(edge.addr, method, target, "").await;
            let (head, body) = split(&answer);
            assert_plain(head, "405 Method Not Allowed");
            assert!(head.contains("Allow: GET\r\n"), "{head}");
            assert!(head.contains("Content-Length: 19"), "{head}");
            let expected = if method == "HEAD" { "" } else { "Method Not Allowed\n" };
            assert_eq!(body, expected);
        }
    }
    for target in ["/", "/nothing", "/health/", "/v3alpha/kv/put"] {
        let answer = http1(edge.addr, "GET", target, "").await;
        let (head, body) = split(&answer);
        assert_plain(head, "404 Not Found");
        assert!(head.contains("X-Content-Type-Options: nosniff"), "{head}");
        assert_eq!(body, "404 page not found\n");
    }
}

#[tokio::test]
async fn cors_headers_are_on_every_answer_of_the_client_port() {
    let edge = start();
    for (method, target) in [
        ("GET", "/health"),
        ("GET", "/nothing"),
        ("POST", "/health"),
        ("OPTIONS", "/x"),
    ] {
        let answer = http1(edge.addr, method, target, "").await;
        let (head, body) = split(&answer);
        for header in [
            "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE",
            "Access-Control-Allow-Origin: *",
            "Access-Control-Allow-Headers: accept, content-type, authorization",
        ] {
            assert!(head.contains(header), "{method} {target}: {head}");
        }
        if method == "OPTIONS" {
            assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
        }
    }
}

/// A24, A25
#[tokio::test]
async fn browsers_are_kept_out_by_origin_and_host() {
    let setup = Setup {
        cors: Cors::Only(["http://page.example:80".to_owned()].into()),
        hosts: HostWhitelist::Only(["edge".to_owned()].into()),
        ..Setup::default()
    };
    let edge = setup.start();
    let answer = http1(edge.addr, "POST", "/v3/kv/put", "Origin: http://evil.example:80\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let answer = http1(edge.addr, "GET", "/health", "Origin: http://evil.example:80\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && !answer.contains("Access-Control"),
        "{answer}"
    );
    let answer = http1(edge.addr, "POST", "/v3/kv/put", "Origin: http://page.example:80\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(
        answer.contains("Access-Control-Allow-Origin: http://page.example:80"),
        "{answer}"
    );
    let bytes = b"GET /health HTTP/1.1\r\nHost: evil.example:2379\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(raw(edge.addr, bytes, std::time::Duration::from_secs(10)).await).unwrap();
    let (head, body) = split(&answer);
    assert_plain(head, "421 Misdirected Request");
    assert!(!head.contains("Access-Control"), "{head}");
    assert!(
        body.contains("evil.example")
            && body.contains("--host-whitelist \"evil.example\"")
            && body.contains("CVE-2018-5702"),
        "{body}"
    );
}

#[tokio::test]
async fn a_metrics_port_has_probes_and_nothing_else() {
    let node = std::sync::Arc::new(Node::default());
    let binding = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let addr = binding.local_addr().unwrap();
    let server = Server::new(Default::default());
    server.serve(binding, Service::metrics(HttpService::metrics(ops(&node)), None));
    for target in ["/health", "/livez", "/readyz", "/readyz/non_learner", "/metrics"] {
        let answer = http1(addr, "GET", target, "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        assert!(!answer.contains("Access-Control"), "{answer}");
    }
    for target in ["/version", "/debug/vars", "/v3/kv/put"] {
        assert!(
            http1(addr, "GET", target, "").await.starts_with("HTTP/1.1 404"),
            "{target}"
        );
    }
    assert!(server.shutdown(std::time::Duration::from_secs(1)).await);
}

#[tokio::test]
async fn metrics_are_compressed_for_those_who_ask() {
    let edge = start();
    let plain = http1(edge.addr, "GET", "/metrics", "").await;
    assert!(!split(&plain).0.contains("Content-Encoding"), "{plain}");
    let bytes = b"GET /metrics HTTP/1.1\r\nHost: edge\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let answer = raw(edge.addr, bytes, std::time::Duration::from_secs(10)).await;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (head, body) = answer.split_at(head);
    let head = String::from_utf8_lossy(head);
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("Content-Encoding: gzip"),
        "{head}"
    );
    assert_eq!(body[..2], [0x1f, 0x8b], "the mark of gzip");
}

#[tokio::test]
async fn a_peer_port_answers_members_and_nothing_else() {
    let node = std::sync::Arc::new(Node::default());
    let binding = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let addr = binding.local_addr().unwrap();
    let server = Server::new(Default::default());
    server.serve(binding, Service::peer(peer_port(), HttpService::peer(ops(&node)), None));

    let answer = http1(addr, "GET", "/version", "").await;
    assert!(answer.contains(r#""etcdserver":"3.7.1""#), "{answer}");
    assert!(http1(addr, "GET", "/members", "").await.starts_with("HTTP/1.1 503"));
    let member = |id, name: &str, is_learner| Member {
        id,
        name: name.to_owned(),
        peer_ur_ls: vec!["http://10.0.0.1:2380".to_owned()],
        client_ur_ls: if is_learner {
            Vec::new()
        } else {
            vec!["http://10.0.0.1:2379".to_owned()]
        },
        is_learner,
    };
    *node.membership.lock() = Some(Membership {
        cluster: ClusterId(0xcdf8_1819_4e3a_8c32),
        members: vec![member(7, "m1", false), member(0x8e9e_05c5_2164_694d, "", true)],
    });
    let answer = http1(addr, "GET", "/members", "").await;
    let (head, body) = split(&answer);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("Content-Type: application/json"), "{head}");
    assert!(head.contains("X-Etcd-Cluster-Id: cdf818194e3a8c32"), "{head}");
    assert!(head.contains("X-Quorate-Version: "), "{head}");
    let wanted = concat!(
        r#"[{"id":7,"peerURLs":["http://10.0.0.1:2380"],"name":"m1","clientURLs":["http://10.0.0.1:2379"]},"#,
        r#"{"id":10276657743932975437,"peerURLs":["http://10.0.0.1:2380"],"isLearner":true}]"#,
        "\n"
    );
    assert_eq!(body, wanted);
    for target in ["/members", "/version"] {
        let answer = http1(addr, "POST", target, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 405") && answer.contains("Allow: GET"),
            "{answer}"
        );
    }
    for target in ["/members/", "/health", "/livez", "/metrics", "/debug/vars", "/raft"] {
        let answer = http1(addr, "GET", target, "").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{target}: {answer}");
    }
    assert!(server.shutdown(std::time::Duration::from_secs(1)).await);
}

#[tokio::test]
async fn keep_alive_serves_many_requests() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let edge = start();
    let mut io = tokio::net::TcpStream::connect(edge.addr).await.unwrap();
    for _ in 0..5 {
        io.write_all(b"GET /health HTTP/1.1\r\nHost: edge\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        let mut buffer = [0; 1024];
        while !text.ends_with("\"\"}") {
            let n = soon(io.read(&mut buffer)).await.unwrap();
            assert!(n > 0);
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }
}
