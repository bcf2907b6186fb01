//! What a setting becomes.

use super::super::table::{Support, TABLE};
use super::*;

#[test]
fn defaults_are_etcds() {
    let Loaded { config, notices } = load_with(&[], &[]).unwrap();
    let url = |text: &str| vec![Url::parse(text).unwrap()];
    let wanted = Config {
        name: "default".into(),
        data_dir: "default.etcd".into(),
        wal_dir: None,
        listen_peer_urls: url("http://localhost:2380"),
        listen_client_urls: url("http://localhost:2379"),
        listen_client_http_urls: vec![],
        listen_metrics_urls: vec![],
        initial_advertise_peer_urls: url("http://localhost:2380"),
        advertise_client_urls: url("http://localhost:2379"),
        initial_cluster: "default=http://localhost:2380".into(),
        initial_cluster_state: ClusterState::New,
        initial_cluster_token: "etcd-cluster".into(),
        client_tls: TlsFiles::default(),
        peer_tls: TlsFiles::default(),
        tls_min_version: TlsVersion::Tls12,
        tls_max_version: None,
        cipher_suites: vec![],
        self_signed_cert_validity_years: 1,
        cors: None,
        host_whitelist: None,
        quota_backend: Some(ByteSize(2_147_483_648)),
        max_request: ByteSize(1_572_864),
        max_txn_ops: 128,
        max_concurrent_streams: u32::MAX,
        grpc_keepalive_min_time: Duration::from_secs(5),
        grpc_keepalive_interval: Some(Duration::from_secs(7200)),
        grpc_keepalive_timeout: Some(Duration::from_secs(20)),
        strict_reconfig_check: true,
        max_learners: 1,
        gates: Gates::default(),
        snapshot_count: 10_000,
        snapshot_catchup_entries: 5_000,
        heartbeat_interval: Duration::from_millis(100),
        election_timeout: Duration::from_secs(1),
        watch_progress_notify_interval: Duration::from_secs(600),
        warning_apply_duration: Duration::from_millis(100),
        warning_unary_request_duration: Duration::from_millis(300),
        metrics: MetricsLevel::Basic,
        log: telemetry::Options::default(),
    };
    assert_eq!(config, wanted);
    assert_eq!(notices[0].msg, "'data-dir' was empty; using default");
    assert_eq!(notices[0].get("data-dir"), Some(&Json::from("default.etcd")));
    assert!(messages(&notices)[1].starts_with("it isn't recommended to use default name"));
    assert_eq!(messages(&notices)[2], "Running: ");
}

#[test]
fn every_supported_flag_takes_effect() {
    type Check = fn(&Config) -> bool;
    let cases: &[(&str, Check)] = &[
        ("--name=m1", |c| c.name == "m1" && c.data_dir == *"m1.etcd"),
        ("--data-dir=d", |c| c.data_dir == *"d"),
        ("--wal-dir=w", |c| c.wal_dir == Some("w".into())),
        ("--listen-peer-urls=http://127.0.0.1:1", |c| {
            c.listen_peer_urls[0].port == 1
        }),
        (
            "--listen-metrics-urls=http://127.0.0.1:3,http://127.0.0.1:2,http://127.0.0.1:3",
            |c| c.listen_metrics_urls.iter().map(|url| url.port).eq([2, 3]),
        ),
        ("--initial-advertise-peer-urls=http://h:4", |c| {
            c.initial_advertise_peer_urls[0].host == "h"
        }),
        ("--advertise-client-urls=http://h:5", |c| {
            c.advertise_client_urls[0].port == 5
        }),
        ("--listen-client-http-urls=http://127.0.0.1:6", |c| {
            c.listen_client_http_urls[0].port == 6
        }),
        ("--initial-cluster=anything", |c| c.initial_cluster == "anything"),
        ("--initial-cluster-state=existing", |c| {
            c.initial_cluster_state == ClusterState::Existing
        }),
        ("--initial-cluster-token=t", |c| c.initial_cluster_token == "t"),
        ("--cert-file=c", |c| c.client_tls.cert_file == Some("c".into())),
        ("--key-file=k", |c| c.client_tls.key_file == Some("k".into())),
        ("--trusted-ca-file=a", |c| {
            c.client_tls.trusted_ca_file == Some("a".into()) && c.client_tls.is_empty()
        }),
        ("--client-cert-auth", |c| c.client_tls.client_cert_auth),
        ("--client-crl-file=r", |c| c.client_tls.crl_file == Some("r".into())),
        ("--client-cert-allowed-hostname=a,b", |c| {
            c.client_tls.allowed_hostnames == ["a", "b"] && c.client_tls.allowed_cns.is_empty()
        }),
        ("--auto-tls", |c| c.client_tls.is_self_made() && !c.peer_tls.auto_tls),
        ("--peer-client-cert-file=c", |c| {
            c.peer_tls.client_cert_file == Some("c".into()) && c.peer_tls.is_empty()
        }),
        ("--peer-client-key-file=k", |c| {
            c.peer_tls.client_key_file == Some("k".into())
        }),
        ("--peer-trusted-ca-file=a", |c| {
            c.peer_tls.trusted_ca_file == Some("a".into())
        }),
        ("--peer-client-cert-auth", |c| c.peer_tls.client_cert_auth),
        ("--peer-crl-file=r", |c| c.peer_tls.crl_file == Some("r".into())),
        ("--peer-cert-allowed-cn=a,b", |c| c.peer_tls.allowed_cns == ["a", "b"]),
        ("--peer-cert-allowed-cn=", |c| c.peer_tls.allowed_cns == [""]),
        ("--peer-cert-allowed-hostname=a", |c| {
            c.peer_tls.allowed_hostnames == ["a"]
        }),
        ("--peer-auto-tls", |c| c.peer_tls.is_self_made()),
        ("--peer-skip-client-san-verification", |c| {
            c.peer_tls.skip_client_san_verification
        }),
        ("--self-signed-cert-validity=3", |c| {
            c.self_signed_cert_validity_years == 3
        }),
        ("--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", |c| {
            c.cipher_suites == ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
        }),
        ("--tls-min-version=TLS1.3", |c| c.tls_min_version == TlsVersion::Tls13),
        ("--tls-min-version=", |c| c.tls_min_version == TlsVersion::Tls12),
        ("--tls-max-version=TLS1.2", |c| {
            c.tls_max_version == Some(TlsVersion::Tls12)
        }),
        ("--quota-backend-bytes=-1", |c| c.quota_backend.is_none()),
        ("--quota-backend-bytes=16777216", |c| {
            c.quota_backend == Some(ByteSize(16 << 20))
        }),
        ("--cors=*", |c| c.cors.is_none()),
        ("--cors=http://a.example:80,http://b.example:81", |c| {
            c.cors.as_deref() == Some(&["http://a.example:80".to_owned(), "http://b.example:81".to_owned()])
        }),
        ("--host-whitelist=a.example", |c| {
            c.host_whitelist.as_deref() == Some(&["a.example".to_owned()])
        }),
        ("--max-request-bytes=2", |c| c.max_request == ByteSize(2)),
        ("--max-txn-ops=3", |c| c.max_txn_ops == 3),
        ("--max-concurrent-streams=4", |c| c.max_concurrent_streams == 4),
        ("--grpc-keepalive-min-time=1s", |c| {
            c.grpc_keepalive_min_time == Duration::from_secs(1)
        }),
        ("--grpc-keepalive-interval=0", |c| c.grpc_keepalive_interval.is_none()),
        ("--grpc-keepalive-timeout=0s", |c| c.grpc_keepalive_timeout.is_none()),
        ("--strict-reconfig-check=false", |c| !c.strict_reconfig_check),
        ("--max-learners=2", |c| c.max_learners == 2),
        ("--feature-gates=InitialCorruptCheck=true", |c| {
            c.gates.is_on(INITIAL_CORRUPT_CHECK) && !c.gates.is_on(STOP_GRPC_SERVICE_ON_DEFRAG)
        }),
        ("--max-learners=-1", |c| c.max_learners == 0),
        ("--snapshot-count=0", |c| c.snapshot_count == 10_000),
        ("--snapshot-count=7", |c| c.snapshot_count == 7),
        ("--snapshot-catchup-entries=8", |c| c.snapshot_catchup_entries == 8),
        ("--heartbeat-interval=50", |c| {
            c.heartbeat_interval == Duration::from_millis(50)
        }),
        ("--election-timeout=50000", |c| {
            c.election_timeout == Duration::from_secs(50)
        }),
        ("--watch-progress-notify-interval=1m", |c| {
            c.watch_progress_notify_interval == Duration::from_secs(60)
        }),
        ("--warning-apply-duration=-1s", |c| c.warning_apply_duration.is_zero()),
        ("--warning-unary-request-duration=1s", |c| {
            c.warning_unary_request_duration == Duration::from_secs(1)
        }),
        ("--warning-unary-request-duration=0", |c| {
            c.warning_unary_request_duration == Duration::from_millis(300)
        }),
        ("--metrics=extensive", |c| c.metrics == MetricsLevel::Extensive),
        ("--metrics=zzz", |c| c.metrics == MetricsLevel::Basic),
        ("--log-level=WARN", |c| c.log.level == Level::Warn),
        ("--log-level=", |c| c.log.level == Level::Info),
        ("--log-format=console", |c| c.log.format == Format::Console),
        ("--log-outputs=stdout,a.log,stdout", |c| {
            c.log.outputs == [Output::Stdout, Output::File("a.log".into())]
        }),
        ("--logger=zap", |c| c.log == telemetry::Options::default()),
        ("--version=false", |_| true),
        ("--config-file=", |_| true),
    ];
    for (arg, check) in cases {
        assert!(check(&config(&[arg])), "{arg}");
    }
    let urls = [
        "--listen-client-urls=http://127.0.0.1:6",
        "--advertise-client-urls=http://h:6",
    ];
    assert_eq!(config(&urls).listen_client_urls[0].port, 6);
    // one without the other is a mistake
    let pair = ["--peer-cert-file=c", "--peer-key-file=k"];
    let Config {
        client_tls, peer_tls, ..
    } = config(&pair);
    assert_eq!(
        (peer_tls.cert_file, peer_tls.key_file),
        (Some("c".into()), Some("k".into()))
    );
    assert!(client_tls.is_empty());
    // nothing in the table is supported and untested
    for flag in TABLE.iter().filter(|flag| flag.support == Support::Full) {
        let tested = cases.iter().map(|(arg, _)| *arg).chain(urls).chain(pair);
        assert!(
            tested
                .clone()
                .any(|arg| arg.trim_start_matches('-').split('=').next() == Some(flag.name)),
            "{}",
            flag.name
        );
    }
}

#[test]
fn the_cluster_follows_the_name() {
    let cluster = |args: &[&str]| config(args).initial_cluster;
    assert_eq!(cluster(&["--name=m1"]), "m1=http://localhost:2380");
    let two = "--initial-advertise-peer-urls=http://b:1,http://a:1";
    assert_eq!(cluster(&["--name=m1", two]), "m1=http://a:1,m1=http://b:1");
    // not with the default name, as in etcd
    assert_eq!(cluster(&[two]), "default=http://localhost:2380");
    assert_eq!(
        cluster(&["--name=m1", "--initial-cluster=m2=http://c:1"]),
        "m2=http://c:1"
    );
    assert_eq!(
        from_file("name: m2").unwrap().config.initial_cluster,
        "m2=http://localhost:2380"
    );
}

#[test]
fn the_start_record_shows_what_is_in_force() {
    let record = config(&["--name=m1", "--snapshot-catchup-entries=1000"]).start_record(false);
    assert_eq!(record.msg, "starting an etcd server");
    for (key, value) in [
        ("etcd-version", Json::from("3.7.1")),
        ("snapshot-catchup-entries", Json::from(1000)),
        ("heartbeat-interval", Json::from("100ms")),
        ("election-timeout", Json::from("1s")),
        ("quota-backend-bytes", Json::from(2_147_483_648u64)),
        ("listen-client-urls", Json::from(vec!["http://localhost:2379"])),
        ("initial-cluster", Json::from("m1=http://localhost:2380")),
        ("pre-vote", Json::from(true)),
    ] {
        assert_eq!(record.get(key), Some(&value), "{key}");
    }
    assert_eq!(
        config(&["--name=m1"]).start_record(true).get("initial-cluster"),
        Some(&Json::from(""))
    );
}
