//! Settings that can be read and can't be had.

use super::super::table::{FileKey, Support, TABLE};
use super::*;

#[test]
fn what_is_not_yet_supported_is_refused_by_name() {
    for flag in TABLE.iter().filter(|flag| flag.support == Support::NotYet) {
        use crate::config::value::Kind;
        let other = match flag.kind {
            Kind::Bool => (flag.default == "false").to_string(),
            Kind::Int | Kind::Uint | Kind::Uint32 => "7".to_owned(),
            Kind::Duration => "7s".to_owned(),
            Kind::Urls | Kind::Cors => "http://127.0.0.1:7".to_owned(),
            Kind::DiscoveryFallback => "proxy".to_owned(),
            _ => "other".to_owned(),
        };
        let message =
            |name: &str| format!("{name} is not yet supported by Quorate 0.1.0; leave it out or at its default");
        let arg = format!("--{}={other}", flag.name);
        assert_refused(
            &refused(&[&arg]),
            "failed to verify flags",
            &message(&format!("--{}", flag.name)),
        );
        let exit = load_with(&[], &[(&flag.env_name(), &other)]).unwrap_err();
        assert_refused(&exit, "failed to verify flags", &message(&flag.env_name()));
        // a default asks for nothing
        if flag.kind != Kind::List {
            config(&[&format!("--{}={}", flag.name, flag.default)]);
        }

        if let FileKey::Same | FileKey::At(_) = flag.file {
            let in_file = match flag.kind {
                Kind::Duration => "7000000000".to_owned(),
                Kind::List => "[other]".to_owned(),
                _ => other,
            };
            let path = crate::config::file::key_path(flag);
            let keys: Vec<_> = path.split('.').collect();
            let text = format!("{}: {in_file}{}", keys.join(": {"), "}".repeat(keys.len() - 1));
            let exit = from_file(&text).unwrap_err();
            assert_refused(&exit, "failed to verify flags", &message(&path));
        }
    }
    assert_eq!(
        exit_error(&["--log-outputs=systemd/journal"]),
        "--log-outputs=systemd/journal is not yet supported by Quorate 0.1.0; under systemd, stderr reaches the journal"
    );
}

fn exit_error(args: &[&str]) -> String {
    refused(args).error().unwrap().to_owned()
}

#[test]
fn validation_speaks_etcds_words() {
    let listen = "--listen-client-urls=http://127.0.0.1:2379";
    for (args, reason) in [
        (vec!["--logger=capnslog"], "--logger=capnslog is removed in v3.5"),
        (vec!["--logger=foo"], r#"unknown logger option "foo""#),
        (
            vec!["--log-outputs=default,stderr"],
            r#"multi logoutput for "default" is not supported yet"#,
        ),
        (
            vec!["--log-format=foo"],
            "unknown log format: foo, supported values json, console",
        ),
        (
            vec!["--listen-peer-urls=http://foo:1"],
            "expected IP in URL for binding (http://foo:1)",
        ),
        (
            vec!["--listen-client-urls=http://:1"],
            "expected IP in URL for binding (http://:1)",
        ),
        (
            vec!["--listen-metrics-urls=http://foo:1"],
            "expected IP in URL for binding (http://foo:1)",
        ),
        (
            vec!["--listen-client-http-urls=http://foo:1"],
            "expected IP in URL for binding (http://foo:1)",
        ),
        (
            vec!["--feature-gates=CompactHashCheck=true"],
            "feature gate CompactHashCheck=true is not yet supported by Quorate 0.1.0; leave it out or at its default",
        ),
        (
            vec!["--initial-advertise-peer-urls=http://:2380"],
            r#"--initial-advertise-peer-urls "http://:2380" must be "host:port" (unexpected empty host (http://:2380))"#,
        ),
        (
            vec!["--advertise-client-urls=http://:2379"],
            r#"--advertise-client-urls "http://:2379" must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host (http://:2379))"#,
        ),
        (
            vec!["--heartbeat-interval=0"],
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            vec!["--election-timeout=0"],
            "--election-timeout must be >0 (set to 0ms)",
        ),
        (
            vec!["--heartbeat-interval=300"],
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
        (
            vec!["--election-timeout=60000"],
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (
            vec!["--tls-min-version=TLS1.1"],
            r#"unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)"#,
        ),
        (
            vec!["--tls-max-version=x"],
            r#"unexpected TLS version "x" (must be one of: TLS1.2, TLS1.3)"#,
        ),
        (
            vec!["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            vec![
                "--tls-min-version=TLS1.3",
                "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            ],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        // the order: logging, binding, advertising, ticks, advertising at all
        (
            vec!["--logger=foo", "--listen-peer-urls=http://foo:1"],
            r#"unknown logger option "foo""#,
        ),
        (
            vec!["--heartbeat-interval=0", "--listen-peer-urls=http://foo:1"],
            "expected IP in URL for binding (http://foo:1)",
        ),
        (
            vec!["--heartbeat-interval=0", "--initial-advertise-peer-urls=http://:1"],
            r#"--initial-advertise-peer-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))"#,
        ),
        (
            vec!["--heartbeat-interval=0", listen],
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            vec!["--tls-min-version=x", "--heartbeat-interval=0"],
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
    ] {
        assert_refused(&refused(&args), "failed to verify flags", reason);
    }
    let missing = "--advertise-client-urls is required when --listen-client-urls is set explicitly";
    for exit in [
        refused(&[listen]),
        load_with(&[], &[("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")]).unwrap_err(),
    ] {
        assert_refused(&exit, "advertise client URLs are not set", missing);
        let first = &exit.records[exit.records.len() - 2];
        assert_eq!(
            (first.msg.as_ref(), first.get("error")),
            ("failed to verify flags", Some(&Json::from(missing)))
        );
    }
    // fine: unix sockets have no host to check, and the edge of the election timeout
    config(&[
        "--listen-peer-urls=unix://s.sock",
        "--election-timeout=50000",
        "--heartbeat-interval=10000",
    ]);
    config(&["--listen-peer-urls=http://[::1]:1,http://0.0.0.0:2,http://localhost:3"]);
}

#[test]
fn tls_listeners_need_their_files() {
    let client = "--listen-client-urls=https://127.0.0.1:2379";
    let advertised = "--advertise-client-urls=https://127.0.0.1:2379";
    let metrics = "--listen-metrics-urls=https://127.0.0.1:2381";
    for (args, reason) in [
        (
            vec![client, advertised],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:2379 with HTTPS scheme",
        ),
        (
            vec![client, advertised, "--client-cert-auth"],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:2379 with HTTPS scheme",
        ),
        (
            vec!["--listen-client-http-urls=http://127.0.0.1:9000,http://localhost:2379"],
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://localhost:2379",
        ),
        (
            vec!["--listen-peer-urls=https://127.0.0.1:2380"],
            "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
        ),
        (
            vec![metrics],
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
        ),
        (
            vec![client, advertised, "--cert-file=x"],
            "KeyFile and CertFile must both be present[key: , cert: x]",
        ),
        (
            vec![client, advertised, "--key-file=x"],
            "KeyFile and CertFile must both be present[key: x, cert: ]",
        ),
    ] {
        let exit = refused(&args);
        assert_refused(&exit, "discovery failed", reason);
        assert_eq!(exit.records.last().unwrap().level, Level::Fatal);
    }
    config(&[client, advertised, metrics, "--cert-file=c", "--key-file=k"]);
    config(&[
        client,
        advertised,
        metrics,
        "--auto-tls",
        "--listen-peer-urls=https://127.0.0.1:2380",
        "--peer-auto-tls",
    ]);
    let Loaded { notices, .. } = load_with(&["--cert-file=c", "--key-file=k", "--client-cert-auth"], &[]).unwrap();
    let ignored: Vec<_> = notices
        .iter()
        .filter(|notice| notice.get("client-url").is_some())
        .collect();
    assert_eq!(ignored.len(), 2);
}

#[test]
fn peers_tls_is_checked_as_a_whole() {
    let peer = "--listen-peer-urls=https://127.0.0.1:2380";
    let (cert, key) = ("--peer-cert-file=c", "--peer-key-file=k");
    for (args, reason) in [
        (
            vec![peer, "--peer-trusted-ca-file=a", "--peer-client-cert-auth"],
            "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
        ),
        (
            vec![peer, cert],
            "KeyFile and CertFile must both be present[key: , cert: c]",
        ),
        (
            vec![peer, key],
            "KeyFile and CertFile must both be present[key: k, cert: ]",
        ),
        // it is what we connect with, too, wherever we listen
        (vec![cert], "KeyFile and CertFile must both be present[key: , cert: c]"),
        (
            vec![cert, key, "--peer-client-cert-file=x"],
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: x]",
        ),
        (
            vec![cert, key, "--peer-client-key-file=x"],
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: x, cert: ]",
        ),
        (
            vec![
                peer,
                cert,
                key,
                "--peer-cert-allowed-cn=a,b",
                "--peer-cert-allowed-hostname=h",
            ],
            r#"AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a" "b"], hostnames=["h"])"#,
        ),
    ] {
        assert_refused(&refused(&args), "discovery failed", reason);
    }
    let suites = exit_error(&["--cipher-suites=TLS_NOPE"]);
    assert!(
        suites.starts_with(r#"unexpected TLS cipher suite "TLS_NOPE""#),
        "{suites}"
    );
    for (flag, whose) in [("--auto-tls", "client"), ("--peer-auto-tls", "peer")] {
        let exit = refused(&[flag, "--self-signed-cert-validity=0"]);
        let message = format!("failed to get {whose} self-signed certs");
        assert_refused(
            &exit,
            &message,
            "selfSignedCertValidity is invalid,it should be greater than 0",
        );
        assert_eq!(exit.records.last().unwrap().level, Level::Fatal);
    }
    config(&["--self-signed-cert-validity=0"]);
}

#[test]
fn what_has_no_effect_on_peers_tls_is_said() {
    let about = |args: &[&str], text: &str| {
        let Loaded { notices, .. } = load_with(args, &[]).unwrap();
        notices.iter().filter(|notice| notice.msg.contains(text)).count()
    };
    let pair = ["--peer-cert-file=c", "--peer-key-file=k", "--peer-client-cert-auth"];
    assert_eq!(about(&pair, "scheme is HTTP while"), 2);
    assert_eq!(
        about(
            &[pair[0], pair[1], "--listen-peer-urls=unix://s"],
            "scheme is HTTP while"
        ),
        0
    );
    assert_eq!(
        about(
            &[pair[0], pair[1], "--peer-auto-tls"],
            "ignoring peer auto TLS since certs given"
        ),
        1
    );
    assert_eq!(
        about(&["--peer-auto-tls", pair[2]], "settings about that have no effect"),
        1
    );
    assert_eq!(about(&["--peer-auto-tls"], "settings about that have no effect"), 0);
}

/// At whatever level is logged: a process that ends without a word can't be helped.
#[test]
fn the_reason_is_said_at_every_level() {
    for level in ["info", "error", "fatal"] {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        let exit = refused(&[
            &format!("--log-outputs={}", log.display()),
            &format!("--log-level={level}"),
            "--heartbeat-interval=0",
        ]);
        exit.emit();
        let lines = std::fs::read_to_string(&log).unwrap();
        assert!(lines.contains("--heartbeat-interval must be >0"), "{level}: {lines}");
        assert_eq!(lines.contains("Running: "), level == "info", "{lines}");
    }
}

#[test]
fn the_table_is_consistent() {
    for (index, flag) in TABLE.iter().enumerate() {
        assert_eq!(
            crate::config::table::find(flag.name),
            Some(index),
            "{} twice",
            flag.name
        );
        assert!(flag.kind.parse(flag.default).is_ok(), "{}", flag.name);
        let hidden = flag.support == Support::Dropped && flag.name != "v2-deprecation";
        assert_eq!(flag.help.is_empty(), hidden, "{}", flag.name);
    }
    assert_eq!(TABLE.len(), 128);
}
