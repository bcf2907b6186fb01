//! Connections between members: who is believed on either end, and what is said about those who are not.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_runtime::tls::Alpn;
use quorate_server::config::{self, Config, Url};
use quorate_server::http::HttpService;
use quorate_server::listen::{ListenLimits, Server, Service, bind};
use quorate_server::peer::dial::{Dialer, PeerStream};
use quorate_server::tls::peer_listeners;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::field::{Field, Visit};
use tracing::span;

use crate::certificates::Authority;
use crate::kit::*;

/// Keeps what is logged on this thread, as `message | field=value | …`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let guard = tracing::subscriber::set_default(log.clone());
        (log, guard)
    }

    async fn wait_for(&self, message: &str, text: &str) {
        let start = Instant::now();
        loop {
            let lines = self.0.lock().clone();
            if lines.iter().any(|line| line.contains(message) && line.contains(text)) {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no {message:?} with {text:?} in {lines:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("quorate") && *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{}={value:?} | ", field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0 += &format!("{}={value} | ", field.name());
    }
}

fn settings(args: &[String]) -> Config {
    let words = std::iter::once("quorate".to_owned()).chain(args.iter().cloned());
    config::load(words.map(Into::into), std::iter::empty()).unwrap().config
}

/// The settings of a member whose certificate is `NAME.pem`; `file:NAME` in an argument is a file of the authority's.
fn member(ca: &Authority, name: &str, more: &[&str]) -> Config {
    let file = |text: &str| match text.split_once("file:") {
        Some((flag, file)) => format!("{flag}{}", ca.path(file).display()),
        None => text.to_owned(),
    };
    let mut args = vec![
        "--listen-peer-urls=https://127.0.0.1:0".to_owned(),
        file(&format!("--peer-cert-file=file:{name}.pem")),
        file(&format!("--peer-key-file=file:{name}-key.pem")),
        file("--peer-trusted-ca-file=file:ca.pem"),
    ];
    args.extend(more.iter().map(|text| file(text)));
    settings(&args)
}

struct Peer {
    addr: SocketAddr,
    _server: Server,
}

impl Peer {
    fn url(&self, scheme: &str, host: &str) -> Url {
        Url::parse(&format!("{scheme}://{host}:{}", self.addr.port())).unwrap()
    }
}

/// A peer port by these settings.
fn serve(config: &Config) -> Peer {
    serve_within(config, ListenLimits::default())
}

fn serve_within(config: &Config, limits: ListenLimits) -> Peer {
    let tls = peer_listeners(config).unwrap();
    let urls: Vec<_> = config.listen_peer_urls.iter().map(Into::into).collect();
    let binding = bind(&urls, Default::default()).unwrap().remove(0);
    let addr = binding.local_addr().unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
    let server = Server::new(limits);
    let http = HttpService::peer(ops(&Arc::new(Node::default())));
    server.serve(binding, Service::peer(peer_port(), http, tls));
    Peer { addr, _server: server }
}

/// Asks for the version on a connection that stays open.
async fn ask(io: &mut Box<dyn PeerStream>) -> io::Result<String> {
    io.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(b"}") {
        match io.read(&mut buffer).await? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer")),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8(answer).unwrap())
}

/// Whether the member behind `url` answers, or what the one that asks hears instead.
async fn reach(dialer: &Dialer, url: &Url) -> Result<(), String> {
    let asked = async {
        let mut io = dialer.dial(url).await?;
        ask(&mut io).await
    };
    let answer = soon(asked).await.map_err(|error| error.to_string())?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// Whose certificate is judged, further settings of the one that judges, and what becomes of it: for one that is
/// refused, what the side that dials says, and what the other logs.
type Case<'a> = (&'a str, &'a [&'a str], Result<(), (&'a str, &'a str)>);

const REJECTED: &str = "rejected connection on peer endpoint";

/// C3, C4: certificates of members that connect. What either side says names the cause.
#[tokio::test]
async fn certificate_rule_matrix() {
    let (ca, other) = (Authority::new(), Authority::new());
    ca.write("server", &ca.peer("m1"));
    ca.write("good", &ca.peer("m2"));
    ca.write("expired", &ca.issue(&["127.0.0.1"], "m2", &[ClientAuth], true));
    ca.write("stranger", &other.peer("m2"));
    ca.write("misused", &ca.issue(&["127.0.0.1"], "m2", &[ServerAuth], false));
    ca.write("elsewhere", &ca.peer_at(&["10.0.0.9"], "m2"));
    ca.write("named", &ca.peer_at(&["10.0.0.9", "nowhere.invalid"], "m2"));
    ca.write("nameless", &ca.peer_at(&[], ""));
    let revoked = ca.peer("m2");
    ca.write("revoked", &revoked);
    ca.revoke(&[revoked.serial]);
    let (log, _guard) = Log::start();

    let refused_here = "remote error: tls: ";
    let cases: &[Case<'_>] = &[
        ("good", &[], Ok(())),
        ("good", &["--peer-crl-file=file:crl.pem"], Ok(())),
        ("good", &["--peer-cert-allowed-cn=m1,m2"], Ok(())),
        (
            "good",
            &["--peer-cert-allowed-hostname=other.example,localhost"],
            Ok(()),
        ),
        ("good", &["--peer-cert-allowed-hostname=127.0.0.1"], Ok(())),
        ("nameless", &[], Ok(())),
        ("nameless", &["--peer-cert-allowed-cn="], Ok(())),
        ("elsewhere", &["--peer-skip-client-san-verification"], Ok(())),
        (
            "expired",
            &[],
            Err((
                "expired certificate",
                "x509: certificate has expired or is not yet valid: current time",
            )),
        ),
        (
            "stranger",
            &[],
            Err((
                "unknown certificate authority",
                "x509: certificate signed by unknown authority",
            )),
        ),
        (
            "misused",
            &[],
            Err((
                "unsupported certificate",
                "certificate specifies an incompatible key usage",
            )),
        ),
        (
            "revoked",
            &["--peer-crl-file=file:crl.pem"],
            Err(("revoked certificate", "certificate is on the revocation list")),
        ),
        (
            "good",
            &["--peer-cert-allowed-cn=m1"],
            Err(("bad certificate", "client certificate authentication failed")),
        ),
        (
            "good",
            &["--peer-cert-allowed-hostname=other.example"],
            Err(("bad certificate", "client certificate authentication failed")),
        ),
        (
            "elsewhere",
            &[],
            Err(("", "x509: certificate is valid for 10.0.0.9, not 127.0.0.1")),
        ),
        (
            "named",
            &[],
            Err((
                "",
                r#"tls: "127.0.0.1" does not match any of DNSNames ["nowhere.invalid"]"#,
            )),
        ),
    ];
    for (certificate, rules, expected) in cases {
        log.0.lock().clear();
        let peer = serve(&member(&ca, "server", rules));
        let dialer = Dialer::new(&member(&ca, certificate, &[])).unwrap();
        let url = peer.url("https", "127.0.0.1");
        let reached = reach(&dialer, &url).await;
        match expected {
            Ok(()) => assert_eq!(reached, Ok(()), "{certificate} {rules:?}"),
            Err((heard, said)) => {
                let error = reached.unwrap_err();
                // One that is refused after the handshake only sees the end.
                if !heard.is_empty() {
                    let wanted = format!("{url}: {refused_here}{heard}");
                    assert!(error.ends_with(&wanted), "{certificate} {rules:?}: {error}");
                }
                log.wait_for(REJECTED, said).await;
            }
        }
    }

    log.0.lock().clear();
    let peer = serve(&member(&ca, "server", &[]));
    let trust = format!("--peer-trusted-ca-file={}", ca.path("ca.pem").display());
    let without = Dialer::new(&settings(&[trust])).unwrap();
    let error = reach(&without, &peer.url("https", "localhost")).await.unwrap_err();
    assert!(error.ends_with("remote error: tls: certificate required"), "{error}");
    log.wait_for(REJECTED, "tls: client didn't provide a certificate").await;
    // A certificate for connecting comes before the one for serving.
    let both = [
        "--peer-client-cert-file=file:good.pem",
        "--peer-client-key-file=file:good-key.pem",
    ];
    let dialer = Dialer::new(&member(&ca, "expired", &both)).unwrap();
    assert_eq!(reach(&dialer, &peer.url("https", "127.0.0.1")).await, Ok(()));
}

/// C3, C4, A17: certificates of members that we connect to.
#[tokio::test]
async fn dialled_members_are_verified() {
    let (ca, other) = (Authority::new(), Authority::new());
    ca.write("own", &ca.peer("m1"));
    ca.write("good", &ca.peer("m2"));
    ca.write("expired", &ca.issue(&["127.0.0.1"], "m2", &[ServerAuth], true));
    ca.write("stranger", &other.peer("m2"));
    ca.write("misused", &ca.issue(&["127.0.0.1"], "m2", &[ClientAuth], false));
    ca.write("elsewhere", &ca.peer_at(&["10.0.0.9", "m2.example"], "m2"));
    ca.write("nameless", &ca.peer_at(&[], "127.0.0.1"));
    let revoked = ca.peer("m2");
    ca.write("revoked", &revoked);
    ca.revoke(&[revoked.serial]);
    let (log, _guard) = Log::start();
    let cases: &[Case<'_>] = &[
        ("good", &[], Ok(())),
        (
            "good",
            &["--peer-crl-file=file:crl.pem", "--peer-cert-allowed-cn=m2"],
            Ok(()),
        ),
        (
            "expired",
            &[],
            Err((
                "x509: certificate has expired or is not yet valid: current time",
                "expired certificate",
            )),
        ),
        (
            "stranger",
            &[],
            Err((
                "x509: certificate signed by unknown authority",
                "unknown certificate authority",
            )),
        ),
        (
            "misused",
            &[],
            Err((
                "certificate specifies an incompatible key usage",
                "unsupported certificate",
            )),
        ),
        (
            "elsewhere",
            &[],
            Err((
                "x509: certificate is valid for 10.0.0.9, m2.example, not 127.0.0.1",
                "bad certificate",
            )),
        ),
        // a common name is no name of a host
        ("nameless", &[], Err(("wanted to match 127.0.0.1", "bad certificate"))),
        (
            "revoked",
            &["--peer-crl-file=file:crl.pem"],
            Err(("certificate is on the revocation list", "revoked certificate")),
        ),
        (
            "good",
            &["--peer-cert-allowed-cn=m1"],
            Err(("client certificate authentication failed", "bad certificate")),
        ),
        (
            "good",
            &["--peer-cert-allowed-hostname=other.example"],
            Err(("client certificate authentication failed", "bad certificate")),
        ),
    ];
    for (certificate, rules, expected) in cases {
        log.0.lock().clear();
        let peer = serve(&member(&ca, certificate, &[]));
        let dialer = Dialer::new(&member(&ca, "own", rules)).unwrap();
        let url = peer.url("https", "127.0.0.1");
        let reached = reach(&dialer, &url).await;
        match expected {
            Ok(()) => assert_eq!(reached, Ok(()), "{certificate} {rules:?}"),
            Err((said, heard)) => {
                let error = reached.unwrap_err();
                assert!(
                    error.starts_with(&format!("dial {url}: ")) && error.contains(said),
                    "{certificate} {rules:?}: {error}"
                );
                log.wait_for(REJECTED, &format!("remote error: tls: {heard}")).await;
            }
        }
    }
    // Names count as they are dialled.
    let peer = serve(&member(&ca, "good", &[]));
    let dialer = Dialer::new(&member(&ca, "own", &[])).unwrap();
    assert_eq!(reach(&dialer, &peer.url("https", "localhost")).await, Ok(()));
    let mut io = dialer
        .dial_for(&peer.url("https", "localhost"), Alpn::None)
        .await
        .unwrap();
    ask(&mut io).await.unwrap();
    // What was agreed on as HTTP/2 is nothing else.
    let mut io = dialer
        .dial_for(&peer.url("https", "localhost"), Alpn::H2)
        .await
        .unwrap();
    ask(&mut io).await.unwrap_err();
}

#[tokio::test]
async fn the_scheme_decides_alone_what_is_spoken() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let (log, _guard) = Log::start();
    let dialer = Dialer::new(&member(&ca, "m", &[])).unwrap();
    let plain = serve(&settings(&["--listen-peer-urls=http://127.0.0.1:0".to_owned()]));
    let secure = serve(&member(&ca, "m", &[]));
    assert_eq!(reach(&dialer, &plain.url("http", "127.0.0.1")).await, Ok(()));
    let error = reach(&dialer, &plain.url("https", "127.0.0.1")).await.unwrap_err();
    assert!(error.starts_with("dial https://127.0.0.1:"), "{error}");
    assert!(reach(&dialer, &secure.url("http", "127.0.0.1")).await.is_err());
    log.wait_for(REJECTED, "tls: first record does not look like a TLS handshake")
        .await;
    // Nobody there, and nobody known.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = Url::parse(&format!("https://{free}")).unwrap();
    assert_eq!(
        reach(&dialer, &url).await,
        Err(format!("dial {url}: connection refused"))
    );
    let url = Url::parse("https://nowhere.invalid:1").unwrap();
    let error = reach(&dialer, &url).await.unwrap_err();
    assert!(error.starts_with("dial https://nowhere.invalid:1: "), "{error}");
    // Without any setting, strangers are strangers.
    let plain_member = Dialer::new(&settings(&[])).unwrap();
    let error = reach(&plain_member, &secure.url("https", "127.0.0.1"))
        .await
        .unwrap_err();
    assert!(
        error.contains("unknown authority") || error.contains("no system root store"),
        "{error}"
    );
}

#[tokio::test]
async fn unix_sockets_speak_tls_if_their_scheme_says_so() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let dialer = Dialer::new(&member(&ca, "m", &[])).unwrap();
    for scheme in ["unix", "unixs"] {
        let listen = format!("--listen-peer-urls={scheme}://{}", ca.path(scheme).display());
        let config = member(&ca, "m", &[&listen]);
        let _peer = serve(&config);
        assert_eq!(reach(&dialer, &config.listen_peer_urls[0]).await, Ok(()));
    }
}

/// C5: on both ends, and what is open stays open.
#[tokio::test]
async fn new_files_are_taken_by_both_ends_of_a_connection() {
    let (ca, next) = (Authority::new(), Authority::new());
    ca.write("server", &ca.peer("m1"));
    ca.write("client", &ca.peer("m2"));
    let peer = serve(&member(&ca, "server", &[]));
    let dialer = Dialer::new(&member(&ca, "client", &[])).unwrap();
    let url = peer.url("https", "127.0.0.1");
    let mut open = dialer.dial(&url).await.unwrap();
    ask(&mut open).await.unwrap();
    let later = || tokio::time::sleep(Duration::from_millis(250));

    // Sets that are no good: damaged, missing, a key of another certificate.
    for (name, leaf) in [("server", ca.peer("m1")), ("client", ca.peer("m2"))] {
        std::fs::write(ca.path(&format!("{name}.pem")), "-----BEGIN CERTIFICATE-----\nxx").unwrap();
        later().await;
        assert_eq!(reach(&dialer, &url).await, Ok(()));
        std::fs::remove_file(ca.path(&format!("{name}.pem"))).unwrap();
        later().await;
        assert_eq!(reach(&dialer, &url).await, Ok(()));
        std::fs::write(ca.path(&format!("{name}.pem")), &leaf.cert).unwrap();
        later().await;
        assert_eq!(reach(&dialer, &url).await, Ok(()));
        std::fs::write(ca.path(&format!("{name}-key.pem")), &leaf.key).unwrap();
        later().await;
        assert_eq!(reach(&dialer, &url).await, Ok(()));
    }

    // Another authority altogether: who stays behind is out.
    let (old_ca, old) = (std::fs::read(ca.path("ca.pem")).unwrap(), ca.peer("m2"));
    std::fs::write(ca.path("old-ca.pem"), old_ca).unwrap();
    ca.write("old", &old);
    let behind = member(&ca, "old", &["--peer-trusted-ca-file=file:old-ca.pem"]);
    let behind = Dialer::new(&behind).unwrap();
    assert_eq!(reach(&behind, &url).await, Ok(()));
    ca.write("server", &next.peer("m1"));
    ca.write("client", &next.peer("m2"));
    std::fs::copy(next.path("ca.pem"), ca.path("ca.pem")).unwrap();
    later().await;
    assert_eq!(reach(&dialer, &url).await, Ok(()));
    let error = reach(&behind, &url).await.unwrap_err();
    assert!(error.contains("unknown authority"), "{error}");
    ask(&mut open).await.unwrap();
}

/// C4: a list that changes is followed on both ends.
#[tokio::test]
async fn a_peer_that_is_revoked_later_is_out() {
    let ca = Authority::new();
    let (m1, m2) = (ca.peer("m1"), ca.peer("m2"));
    ca.write("m1", &m1);
    ca.write("m2", &m2);
    ca.revoke(&[]);
    let rules = ["--peer-crl-file=file:crl.pem"];
    let peers = ["m1", "m2"].map(|name| serve(&member(&ca, name, &rules)));
    let without = ["m1", "m2"].map(|name| Dialer::new(&member(&ca, name, &[])).unwrap());
    let with = ["m1", "m2"].map(|name| Dialer::new(&member(&ca, name, &rules)).unwrap());
    let [url1, url2] = peers.each_ref().map(|peer| peer.url("https", "127.0.0.1"));
    assert_eq!(reach(&without[0], &url2).await, Ok(()));
    assert_eq!(reach(&without[1], &url1).await, Ok(()));
    assert_eq!(reach(&with[0], &url2).await, Ok(()));
    ca.revoke(&[m2.serial]);
    tokio::time::sleep(Duration::from_millis(250)).await;
    // m2 can't come in, and m1 does not go to it.
    let error = reach(&without[1], &url1).await.unwrap_err();
    assert!(error.ends_with("remote error: tls: revoked certificate"), "{error}");
    let error = reach(&with[0], &url2).await.unwrap_err();
    assert!(error.contains("certificate is on the revocation list"), "{error}");
}

#[tokio::test]
async fn bad_files_are_refused_at_the_start() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    std::fs::write(ca.path("empty.pem"), "").unwrap();
    for (rule, named) in [
        ("--peer-key-file=file:nope.pem", "nope.pem"),
        ("--peer-cert-file=file:empty.pem", "empty.pem"),
        ("--peer-key-file=file:key.pem", "do not go together"),
        ("--peer-trusted-ca-file=file:empty.pem", "empty.pem"),
        ("--peer-crl-file=file:m.pem", "m.pem"),
        ("--peer-cert-allowed-hostname=a b", "\"a b\""),
    ] {
        let config = member(&ca, "m", &[rule]);
        for error in [
            peer_listeners(&config).map(drop).unwrap_err(),
            Dialer::new(&config).map(drop).unwrap_err(),
        ] {
            let text = format!("{error:#}");
            assert!(text.contains(named), "{rule}: {text}");
        }
    }
    // What is only shown to others is read at the start, too.
    let own = [
        "--peer-client-cert-file=file:m.pem",
        "--peer-client-key-file=file:nope.pem",
    ];
    let error = Dialer::new(&member(&ca, "m", &own)).map(drop).unwrap_err();
    assert!(format!("{error:#}").contains("nope.pem"), "{error:#}");
}

#[tokio::test]
async fn members_with_certificates_of_their_own_making_find_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start();
    let of = |name: &str| {
        settings(&[
            format!("--data-dir={}", temp.path().join(name).display()),
            "--listen-peer-urls=https://127.0.0.1:0".to_owned(),
            "--peer-auto-tls".to_owned(),
            // Without effect, as in etcd.
            "--peer-client-cert-auth".to_owned(),
        ])
    };
    let (one, two) = (of("one"), of("two"));
    let peer = serve(&one);
    peer_listeners(&two).unwrap();
    let url = peer.url("https", "127.0.0.1");
    assert_eq!(reach(&Dialer::new(&two).unwrap(), &url).await, Ok(()));
    log.wait_for("certificates of other members are not verified", "").await;
    log.wait_for(
        "automatically generate certificates",
        "certificate-validity-bound-not-after=2",
    )
    .await;
    // Who verifies does not believe it.
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let error = reach(&Dialer::new(&member(&ca, "m", &[])).unwrap(), &url)
        .await
        .unwrap_err();
    assert!(error.contains("failed to verify certificate"), "{error}");
    // The certificate outlives a restart.
    let files = temp.path().join("one/fixtures/peer");
    let before = std::fs::read(files.join("cert.pem")).unwrap();
    peer_listeners(&one).unwrap();
    assert_eq!(std::fs::read(files.join("cert.pem")).unwrap(), before);
    assert!(files.join("key.pem").exists());
}

#[tokio::test]
async fn garbage_on_the_peer_port_ends_its_connection_only() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let peer = serve(&member(&ca, "m", &[]));
    let dialer = Dialer::new(&member(&ca, "m", &[])).unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut noise = |len: usize, start: &[u8]| {
        let mut bytes = vec![0; len];
        random.fill_bytes(&mut bytes);
        bytes[..start.len()].copy_from_slice(start);
        bytes
    };
    let mut cases = vec![
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /members HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        // records of TLS: an empty one, one that is too long, a hello of noise, an alert
        vec![0x16, 3, 1, 0, 0],
        noise(70_000, &[0x16, 3, 1, 0xff, 0xff]),
        noise(517, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        vec![0x15, 3, 1, 0, 2, 2, 40],
    ];
    cases.extend((0..20).map(|n| noise(1 + n * 97, &[])));
    for bytes in cases {
        let mut io = TcpStream::connect(peer.addr).await.unwrap();
        // It may be closed before all is written.
        let _ = io.write_all(&bytes).await;
        let _ = io.shutdown().await;
        let (_, closed) = read_until_closed(&mut io, Duration::from_secs(15)).await;
        assert!(closed, "{:?}", &bytes[..bytes.len().min(16)]);
    }
    let url = peer.url("https", "127.0.0.1");
    assert_eq!(reach(&dialer, &url).await, Ok(()));
    // A member with a good certificate may be no better.
    for bytes in [noise(4096, &[]), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()] {
        let mut io = dialer.dial(&url).await.unwrap();
        let _ = io.write_all(&bytes).await;
        let (_, closed) = read_until_closed(&mut io, Duration::from_secs(15)).await;
        assert!(closed);
    }
    assert_eq!(reach(&dialer, &url).await, Ok(()));
}

/// A34
#[tokio::test]
async fn silence_on_the_peer_port_is_cut_off() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let limits = ListenLimits {
        handshake_deadline: Duration::from_millis(300),
        header_deadline: Duration::from_millis(300),
        ..ListenLimits::default()
    };
    let peer = serve_within(&member(&ca, "m", &[]), limits);
    let dialer = Dialer::new(&member(&ca, "m", &[])).unwrap();
    for bytes in [&b""[..], &[0x16], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]] {
        let begun = Instant::now();
        let mut io = TcpStream::connect(peer.addr).await.unwrap();
        io.write_all(bytes).await.unwrap();
        let (_, closed) = read_until_closed(&mut io, Duration::from_secs(15)).await;
        assert!(closed && begun.elapsed() >= Duration::from_millis(250), "{bytes:?}");
    }
    // A good certificate does not make up for silence.
    let mut io = dialer.dial(&peer.url("https", "127.0.0.1")).await.unwrap();
    let (_, closed) = read_until_closed(&mut io, Duration::from_secs(15)).await;
    assert!(closed);
    assert_eq!(reach(&dialer, &peer.url("https", "127.0.0.1")).await, Ok(()));
}

/// A peer that takes connections and says nothing.
#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let ca = Authority::new();
    ca.write("m", &ca.peer("m"));
    let dialer = Dialer::new(&member(&ca, "m", &[])).unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("https://{}", silent.local_addr().unwrap())).unwrap();
    let error = soon(dialer.dial(&url)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(error.to_string(), format!("dial {url}: timed out"));
}
