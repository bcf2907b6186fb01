//! TLS: who is let in, what is spoken, and how new files come into effect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use quorate_runtime::tls::{ServerTls, ServerTlsOptions, TlsVersion};
use quorate_server::http::HttpService;
use quorate_server::listen::{Server, Service, bind};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::certificates::{Authority, Leaf, client_builder, connect};
use crate::kit::*;

fn https(options: ServerTlsOptions) -> Edge {
    Setup {
        schemes: vec!["https"],
        tls: Some(Arc::new(ServerTls::load(options).unwrap())),
        ..Setup::default()
    }
    .start()
}

/// The caller's common name as the server sees it, or `None` when it is not let in. With TLS 1.3 a refusal may only show
/// after the handshake.
async fn admitted(addr: SocketAddr, config: Arc<ClientConfig>) -> Option<String> {
    soon(async {
        let io = connect(addr, config).await.ok()?;
        let (client, connection) = h2::client::handshake(io).await.ok()?;
        let driving = tokio::spawn(connection);
        let answer = try_send(&client, request(PUT), frame(b"n")).await;
        driving.abort();
        Some(String::from_utf8(answer.ok()?.message().to_vec()).unwrap())
    })
    .await
}

/// C2, C3: the matrix of client certificates.
#[tokio::test]
async fn only_good_client_certificates_are_let_in() {
    let (ca, other) = (Authority::new(), Authority::new());
    let edge = https(ca.mutual_options());
    let try_with = async |leaf: Option<&Leaf>| admitted(edge.addr, ca.client_config(leaf, &["h2"])).await;
    assert_eq!(try_with(None).await, None);
    assert_eq!(try_with(Some(&other.client("stranger"))).await, None);
    assert_eq!(try_with(Some(&ca.expired_client())).await, None);
    assert_eq!(try_with(Some(&ca.misused_client())).await, None);
    assert_eq!(try_with(Some(&ca.client("alice"))).await.as_deref(), Some("alice"));
    // A trusted CA alone asks for certificates, too.
    let edge = https(ServerTlsOptions {
        client_cert_auth: false,
        ..ca.mutual_options()
    });
    assert_eq!(admitted(edge.addr, ca.client_config(None, &["h2"])).await, None);
    let edge = https(ca.options());
    assert_eq!(
        admitted(edge.addr, ca.client_config(None, &["h2"])).await.as_deref(),
        Some("")
    );
}

#[tokio::test]
async fn names_in_client_certificates_can_be_demanded() {
    let ca = Authority::new();
    let alice = ca.client("alice");
    for (hostnames, cns, expected) in [
        (vec!["client.example"], vec![], true),
        (vec!["other.example", "client.example"], vec!["alice"], true),
        (vec!["other.example"], vec![], false),
        (vec![], vec!["bob", "alice"], true),
        (vec![], vec!["bob"], false),
    ] {
        let edge = https(ServerTlsOptions {
            allowed_hostnames: hostnames.iter().map(|name| (*name).to_owned()).collect(),
            allowed_cns: cns.iter().map(|name| (*name).to_owned()).collect(),
            ..ca.mutual_options()
        });
        let let_in = admitted(edge.addr, ca.client_config(Some(&alice), &["h2"]))
            .await
            .is_some();
        assert_eq!(let_in, expected, "{hostnames:?} {cns:?}");
    }
}

/// C2
#[tokio::test]
async fn handshake_matrix() {
    let ca = Authority::new();
    let client = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in quorate_runtime::tls::files::certificates(&ca.path("ca.pem")).unwrap() {
            roots.add(certificate).unwrap();
        }
        let mut config = client_builder(versions)
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    let (tls12, tls13) = (client(&[&rustls::version::TLS12]), client(&[&rustls::version::TLS13]));
    for (min, max, with12, with13) in [
        (TlsVersion::Tls12, None, true, true),
        (TlsVersion::Tls13, None, false, true),
        (TlsVersion::Tls12, Some(TlsVersion::Tls12), true, false),
    ] {
        let edge = https(ServerTlsOptions {
            min_version: min,
            max_version: max,
            ..ca.options()
        });
        assert_eq!(
            admitted(edge.addr, Arc::clone(&tls12)).await.is_some(),
            with12,
            "{min:?} {max:?}"
        );
        assert_eq!(
            admitted(edge.addr, Arc::clone(&tls13)).await.is_some(),
            with13,
            "{min:?} {max:?}"
        );
    }
    let edge = https(ServerTlsOptions {
        cipher_suites: vec!["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned()],
        ..ca.options()
    });
    let io = connect(edge.addr, tls12).await.unwrap();
    let suite = io.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
}

/// C4, A33: on every kind of port, and without a second chance by resumption.
#[tokio::test]
async fn revoked_cert_is_refused_on_every_listener() {
    let ca = Authority::new();
    let (alice, bob) = (ca.client("alice"), ca.client("bob"));
    ca.revoke(&[alice.serial]);
    let tls = Arc::new(
        ServerTls::load(ServerTlsOptions {
            crl_file: Some(ca.path("crl.pem")),
            ..ca.mutual_options()
        })
        .unwrap(),
    );
    let node = Arc::new(Node::default());
    let http = || HttpService::metrics(ops(&node));
    let server = Server::new(Default::default());
    let mut addrs = Vec::new();
    for kind in 0..3 {
        let binding = bind(&["https://127.0.0.1:0".parse().unwrap()], Default::default())
            .unwrap()
            .remove(0);
        addrs.push(binding.local_addr().unwrap());
        let tls = Some(Arc::clone(&tls));
        server.serve(
            binding,
            match kind {
                0 => Service::client_http(http(), tls, quorate_server::listen::Gate::open()),
                1 => Service::peer(peer_port(), HttpService::metrics(ops(&node)), tls),
                _ => Service::metrics(http(), tls),
            },
        );
    }
    let edge = Setup {
        schemes: vec!["https"],
        tls: Some(Arc::clone(&tls)),
        http: false,
        ..Setup::default()
    }
    .start();
    let with_bob = ca.client_config(Some(&bob), &["h2"]);
    assert_eq!(admitted(edge.addr, ca.client_config(Some(&alice), &["h2"])).await, None);
    assert_eq!(admitted(edge.addr, Arc::clone(&with_bob)).await.as_deref(), Some("bob"));
    let over_http = async |addr, leaf| {
        let mut io = connect(addr, ca.client_config(Some(leaf), &[])).await.ok()?;
        io.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .ok()?;
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    for addr in addrs {
        assert_eq!(soon(over_http(addr, &alice)).await, None);
        assert_eq!(soon(over_http(addr, &bob)).await, Some(()));
    }
    // Bob's client holds a session now. Revoked, he is out at the next connection.
    ca.revoke(&[alice.serial, bob.serial]);
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(admitted(edge.addr, with_bob).await, None);
}

#[tokio::test]
async fn alpn_decides_between_http_versions() {
    let ca = Authority::new();
    let edge = https(ca.options());
    // HTTP/2: gRPC by content type, everything else to the router.
    let client = ca.h2(edge.addr).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
    let get = Request::get("https://localhost/health").body(()).unwrap();
    let answer = send(&client, get, Bytes::new()).await;
    assert_eq!(answer.http, 200);
    assert_eq!(&answer.data[..], br#"{"health":"true","reason":""}"#);
    assert_eq!(answer.headers["content-length"], "29");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let post = Request::post("https://localhost/echo").body(()).unwrap();
    let answer = send(&client, post, Bytes::from(vec![b'x'; 60_000])).await;
    assert_eq!(answer.data.len(), 60_000);
    let post = Request::post("https://localhost/echo").body(()).unwrap();
    assert_eq!(send(&client, post, Bytes::from(vec![b'x'; 70_000])).await.http, 413);
    // HTTP/1.1 with and without ALPN; nothing is selected.
    for alpn in [&[][..], &["http/1.1"]] {
        let mut io = connect(edge.addr, ca.client_config(None, alpn)).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), None);
        io.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        soon(io.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn plaintext_to_a_tls_port_is_closed_without_a_word() {
    let ca = Authority::new();
    let edge = https(ca.options());
    for bytes in [
        &b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = soon(raw(edge.addr, bytes, Duration::from_secs(10))).await;
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn both_schemes_share_a_port() {
    let ca = Authority::new();
    let setup = Setup {
        schemes: vec!["http", "https"],
        tls: Some(ca.server_tls()),
        ..Setup::default()
    };
    let edge = setup.start();
    assert!(http1(edge.addr, "GET", "/livez", "").await.starts_with("HTTP/1.1 200"));
    let (plain, secure) = (h2(edge.addr).await, ca.h2(edge.addr).await);
    assert_eq!(&call(&plain, PUT, b"ex").await.message()[..], b"x");
    assert_eq!(&call(&secure, PUT, b"ey").await.message()[..], b"y");
}

#[tokio::test]
async fn split_ports_serve_their_half() {
    let setup = Setup {
        http: false,
        ..Setup::default()
    };
    let edge = setup.start();
    let answer = raw(
        edge.addr,
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        Duration::from_secs(10),
    )
    .await;
    assert!(answer.is_empty(), "a gRPC port does not speak HTTP/1");
    let client = h2(edge.addr).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
    let node = Arc::new(Node::default());
    let binding = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let addr = binding.local_addr().unwrap();
    let server = Server::new(Default::default());
    let http = HttpService::client(
        ops(&node),
        Default::default(),
        Default::default(),
        Default::default(),
        1024,
    );
    server.serve(
        binding,
        Service::client_http(http, None, quorate_server::listen::Gate::open()),
    );
    assert!(http1(addr, "GET", "/version", "").await.starts_with("HTTP/1.1 200"));
    let answer = raw(addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Duration::from_secs(10)).await;
    assert!(answer.is_empty(), "an HTTP port does not speak gRPC");
}

/// E5
#[tokio::test]
async fn a_broken_certificate_file_leaves_the_last_good_one() {
    let ca = Authority::new();
    let edge = https(ca.options());
    let config = ca.client_config(None, &["h2"]);
    let shown = async || {
        let io = connect(edge.addr, Arc::clone(&config)).await.unwrap();
        io.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    // Damaged, missing, and a key that belongs to another certificate.
    std::fs::write(ca.path("cert.pem"), "-----BEGIN CERTIFICATE-----\nxx").unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(shown().await, first);
    std::fs::remove_file(ca.path("cert.pem")).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(shown().await, first);
    let (second, third) = (ca.server(), ca.server());
    std::fs::write(ca.path("cert.pem"), &second.cert).unwrap();
    std::fs::write(ca.path("key.pem"), &third.key).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(shown().await, first);
    // A good set is taken.
    std::fs::write(ca.path("key.pem"), &second.key).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_ne!(shown().await, first);
    // At the start there is no last good one, and the message names the file.
    std::fs::write(ca.path("key.pem"), "").unwrap();
    let error = ServerTls::load(ca.options()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("key.pem") && error.contains("private key"), "{error}");
}

/// C5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_nothing() {
    let ca = Arc::new(Authority::new());
    let edge = https(ca.mutual_options());
    let alice = ca.client("alice");
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    // One connection that lives through it all, and clients that connect anew for each call.
    let mut tasks = Vec::new();
    for fresh in [false, true, true] {
        let (ca, alice) = (Arc::clone(&ca), alice.clone());
        let (stop, calls, addr) = (Arc::clone(&stop), Arc::clone(&calls), edge.addr);
        tasks.push(tokio::spawn(async move {
            let config = ca.client_config(Some(&alice), &["h2"]);
            let open = async || h2_over(connect(addr, Arc::clone(&config)).await.unwrap()).await;
            let mut client = open().await;
            while !stop.load(Ordering::SeqCst) {
                if fresh {
                    client = open().await;
                }
                assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
                calls.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for _ in 0..5 {
        // Two files are never written at once, so between the writes they do not go together.
        ca.write_server(&ca.server());
        let before = calls.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(220)).await;
        until("calls to go on", || calls.load(Ordering::SeqCst) > before + 5).await;
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
}
