//! The configuration file.

use super::*;

#[test]
fn a_file_replaces_everything_else() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "name: m1").unwrap();
    let path = file.path().to_str().unwrap();
    // a conflict, an unknown variable, a bad value, a refused flag: all ignored
    let env = [("ETCD_NAME", "x"), ("ETCD_FOO", "x"), ("ETCD_HEARTBEAT_INTERVAL", "x")];
    let Loaded { config, notices } = load_with(
        &["--config-file", path, "--name=y", "--enable-pprof", "--data-dir=d"],
        &env,
    )
    .unwrap();
    assert_eq!((config.name.as_str(), config.data_dir), ("m1", "m1.etcd".into()));
    let loaded = "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided";
    assert_eq!(
        messages(&notices),
        [loaded, "'data-dir' was empty; using default", "Running: "]
    );
    assert_eq!(notices[0].get("path"), Some(&Json::from(path)));
    // the variable works alone and beside the flag
    assert_eq!(
        load_with(&["--name=y"], &[("ETCD_CONFIG_FILE", path)])
            .unwrap()
            .config
            .name,
        "m1"
    );
    assert_eq!(
        load_with(&["--config-file", path], &[("ETCD_CONFIG_FILE", "/nope")])
            .unwrap()
            .config
            .name,
        "m1"
    );
    // syntax still counts
    assert_usage(
        &refused(&["--config-file", path, "--nope"]),
        "flag provided but not defined: -nope",
    );
    assert_refused(
        &refused(&["--config-file", path, "foo"]),
        "failed to verify flags",
        r#""foo" is not a valid flag"#,
    );
    let exit = refused(&["--config-file=/nope/c.yml"]);
    assert_refused(
        &exit,
        "failed to verify flags",
        "open /nope/c.yml: no such file or directory",
    );
}

#[test]
fn files_are_yaml_or_json() {
    let text = "
name: m1
data-dir: /var/lib/q   # a comment
proxy: 'off'
enable-v2: true
heartbeat-interval: 20
warning-apply-duration: 1000000
grpc-keepalive-timeout: -1
quota-backend-bytes: 1e3
listen-client-urls: http://127.0.0.1:2,http://127.0.0.1:1
initial-cluster-state: ''
memory-mlock: no
log-outputs: [stderr, stdout]
log-level: debug
client-transport-security: {cert-file: c, key-file: k, client-cert-auth: true, nope: 1}
peer-transport-security:
";
    let config = from_file(text).unwrap().config;
    assert_eq!(
        (config.name.as_str(), config.data_dir.to_str()),
        ("m1", Some("/var/lib/q"))
    );
    assert_eq!(config.heartbeat_interval, Duration::from_millis(20));
    assert_eq!(config.warning_apply_duration, Duration::from_millis(1));
    assert_eq!(config.grpc_keepalive_timeout, None);
    assert_eq!(config.quota_backend, Some(ByteSize(1000)));
    assert_eq!(config.listen_client_urls.len(), 2);
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.log.outputs, [Output::Stderr, Output::Stdout]);
    assert_eq!(config.client_tls.cert_file, Some("c".into()));
    assert!(config.client_tls.client_cert_auth);
    // listening elsewhere does not make advertising mandatory here
    assert_eq!(config.advertise_client_urls[0].to_string(), "http://localhost:2379");

    let config = from_file(r#"{"name": "m1", "max-txn-ops": 5, "listen-metrics-urls": ""}"#)
        .unwrap()
        .config;
    assert_eq!(
        (
            config.name.as_str(),
            config.max_txn_ops,
            config.listen_metrics_urls.len()
        ),
        ("m1", 5, 0)
    );
    // an empty list of outputs is no wish for silence
    let config = from_file("log-outputs: []").unwrap().config;
    assert_eq!(config.log, telemetry::Options::default());
    for empty in ["", "---\n", "# nothing\n", "{}", "~"] {
        assert_eq!(from_file(empty).unwrap().config.name, "default");
    }
}

#[test]
fn bad_files_are_refused() {
    for (text, key) in [
        ("- a", "expected a mapping of settings, found a list"),
        (
            "name: [a]",
            "line 1: name: expected a string (put it in quotes), found a list",
        ),
        (
            "\nname: 5",
            "line 2: name: expected a string (put it in quotes), found a number",
        ),
        (
            "heartbeat-interval: '5'",
            "line 1: heartbeat-interval: expected an integer that is not negative, found a string",
        ),
        (
            "heartbeat-interval: 5.5",
            "heartbeat-interval: expected an integer that is not negative, found a number",
        ),
        ("heartbeat-interval: -5", "heartbeat-interval: expected an integer"),
        (
            "warning-apply-duration: 10m",
            "warning-apply-duration: expected an integer, in nanoseconds, found a string",
        ),
        (
            "max-concurrent-streams: 4294967296",
            "max-concurrent-streams: expected an integer from 0 to 4294967295",
        ),
        (
            "listen-client-urls: [http://127.0.0.1:1]",
            "listen-client-urls: expected a string, with commas between URLs, found a list",
        ),
        (
            "log-outputs: stderr",
            "log-outputs: expected a list of strings, found a string",
        ),
        ("pre-vote: 'true'", "pre-vote: expected true or false, found a string"),
        (
            "peer-transport-security: foo",
            "invalid peer-transport-security: expected a mapping, found a string",
        ),
        (
            "client-transport-security: {cert-file: [a]}",
            "client-transport-security.cert-file: expected a string",
        ),
        ("name: \"a: b", "line"),
    ] {
        let exit = from_file(text).unwrap_err();
        assert_eq!(exit.code, 1);
        let error = exit.error().unwrap();
        assert!(error.starts_with("read ") && error.contains(key), "{text}: {error}");
    }
    for (text, line) in [
        (
            "listen-client-urls: foo",
            "listen-client-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            "listen-peer-urls: foo",
            "listen-peer-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            "listen-metrics-urls: foo",
            "listen-metrics-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            "initial-advertise-peer-urls: http://a",
            r#"initial-advertise-peer-urls: URL address does not have the form "host:port": http://a"#,
        ),
        (
            "advertise-client-urls: foo",
            "advertise-peer-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
    ] {
        let exit = from_file(text).unwrap_err();
        assert_eq!(
            (exit.code, exit.stderr),
            (1, format!("unexpected error setting up {line}\n"))
        );
    }
    for (text, reason) in [
        ("initial-cluster-state: foo", r#"unexpected clusterState "foo""#),
        ("feature-gates: X=true", "unrecognized feature gate: X"),
        (
            "heartbeat-interval: 300",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
    ] {
        assert_refused(&from_file(text).unwrap_err(), "failed to verify flags", reason);
    }
    assert_eq!(from_file("log-level: loud").unwrap_err().code, 2);
}

#[test]
fn a_file_has_tls_in_two_blocks() {
    let text = "
client-transport-security:
  cert-file: c
  key-file: k
  trusted-ca-file: a
  client-cert-auth: true
  allowed-hostname: [x, y]
peer-transport-security:
  cert-file: pc
  key-file: pk
  client-cert-file: pcc
  client-key-file: pck
  trusted-ca-file: pa
  client-cert-auth: true
  allowed-cn: [m1, m2]
  skip-client-san-verification: true
  auto-tls: true
# cannot be given in a file
client-crl-file: r
peer-crl-file: r
self-signed-cert-validity: 0
cipher-suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
tls-min-version: TLS1.2
tls-max-version: TLS1.3
";
    let config = from_file(text).unwrap().config;
    let client = TlsFiles {
        cert_file: Some("c".into()),
        key_file: Some("k".into()),
        trusted_ca_file: Some("a".into()),
        client_cert_auth: true,
        allowed_hostnames: vec!["x".into(), "y".into()],
        ..TlsFiles::default()
    };
    let peer = TlsFiles {
        cert_file: Some("pc".into()),
        key_file: Some("pk".into()),
        client_cert_file: Some("pcc".into()),
        client_key_file: Some("pck".into()),
        trusted_ca_file: Some("pa".into()),
        client_cert_auth: true,
        allowed_cns: vec!["m1".into(), "m2".into()],
        skip_client_san_verification: true,
        auto_tls: true,
        ..TlsFiles::default()
    };
    assert_eq!((config.client_tls, config.peer_tls), (client, peer));
    assert_eq!(config.self_signed_cert_validity_years, 1);
    assert_eq!(config.cipher_suites, ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]);
    assert_eq!(
        (config.tls_min_version, config.tls_max_version),
        (TlsVersion::Tls12, Some(TlsVersion::Tls13))
    );
}
