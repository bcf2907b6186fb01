//! Every rule of the settings, through [`load`] alone.

use std::io::Write as _;

use quorate_runtime::telemetry::{Format, Output};
use serde_json::Value as Json;

use super::table::{FileKey, Support, TABLE};
use super::*;

fn load_with(args: &[&str], env: &[(&str, &str)]) -> Result<Loaded, Exit> {
    let args = std::iter::once("quorate")
        .chain(args.iter().copied())
        .map(OsString::from);
    let env = env
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load(args, env)
}

fn config(args: &[&str]) -> Config {
    load_with(args, &[]).unwrap().config
}

fn refused(args: &[&str]) -> Exit {
    load_with(args, &[]).unwrap_err()
}

fn from_file(text: &str) -> Result<Loaded, Exit> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load_with(&["--config-file", file.path().to_str().unwrap()], &[])
}

fn messages(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.msg.as_ref()).collect()
}

/// Ends with code 1, and this reason in a record of this message.
#[track_caller]
fn assert_refused(exit: &Exit, message: &str, reason: &str) {
    assert_eq!(
        (exit.code, exit.stdout.as_str(), exit.stderr.as_str()),
        (1, "", ""),
        "{exit:?}"
    );
    let last = exit.records.last().unwrap();
    assert_eq!(
        (last.msg.as_ref(), exit.error().unwrap()),
        (message, reason)
    );
}

/// Ends with code 2, this first line and the usage.
#[track_caller]
fn assert_usage(exit: &Exit, line: &str) {
    assert_eq!((exit.code, exit.stdout.as_str()), (2, ""));
    let (first, rest) = exit.stderr.split_once('\n').unwrap();
    assert_eq!(first, line);
    assert!(rest.starts_with("Usage:\n"), "{rest}");
    assert!(exit.records.is_empty());
}

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
        listen_metrics_urls: vec![],
        initial_advertise_peer_urls: url("http://localhost:2380"),
        advertise_client_urls: url("http://localhost:2379"),
        initial_cluster: "default=http://localhost:2380".into(),
        initial_cluster_state: ClusterState::New,
        initial_cluster_token: "etcd-cluster".into(),
        strict_reconfig_check: true,
        client_tls: TlsFiles::default(),
        quota_backend: Some(ByteSize(2_147_483_648)),
        max_request: ByteSize(1_572_864),
        max_txn_ops: 128,
        max_concurrent_streams: u32::MAX,
        grpc_keepalive_min_time: Duration::from_secs(5),
        grpc_keepalive_interval: Some(Duration::from_secs(7200)),
        grpc_keepalive_timeout: Some(Duration::from_secs(20)),
        snapshot_count: 10_000,
        snapshot_catchup_entries: 5_000,
        heartbeat_interval: Duration::from_millis(100),
        election_timeout: Duration::from_secs(1),
        compaction_batch_limit: 1_000,
        compaction_sleep_interval: Duration::from_millis(10),
        watch_progress_notify_interval: Duration::from_secs(600),
        warning_apply_duration: Duration::from_millis(100),
        warning_unary_request_duration: Duration::from_millis(300),
        metrics: MetricsLevel::Basic,
        log: telemetry::Options::default(),
    };
    assert_eq!(config, wanted);
    assert_eq!(notices[0].msg, "'data-dir' was empty; using default");
    assert_eq!(
        notices[0].get("data-dir"),
        Some(&Json::from("default.etcd"))
    );
    assert!(messages(&notices)[1].starts_with("it isn't recommended to use default name"));
    assert_eq!(messages(&notices)[2], "Running: ");
}

#[test]
fn every_supported_flag_takes_effect() {
    type Check = fn(&Config) -> bool;
    let cases: &[(&str, Check)] = &[
        ("--name=m1", |c| {
            c.name == "m1" && c.data_dir == PathBuf::from("m1.etcd")
        }),
        ("--data-dir=d", |c| c.data_dir == PathBuf::from("d")),
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
        ("--initial-cluster=anything", |c| {
            c.initial_cluster == "anything"
        }),
        ("--initial-cluster-state=existing", |c| {
            c.initial_cluster_state == ClusterState::Existing
        }),
        ("--initial-cluster-token=t", |c| {
            c.initial_cluster_token == "t"
        }),
        ("--strict-reconfig-check=false", |c| {
            !c.strict_reconfig_check
        }),
        ("--cert-file=c", |c| {
            c.client_tls.cert_file == Some("c".into())
        }),
        ("--key-file=k", |c| {
            c.client_tls.key_file == Some("k".into())
        }),
        ("--trusted-ca-file=a", |c| {
            c.client_tls.verifies_clients() && c.client_tls.is_empty()
        }),
        ("--client-cert-auth", |c| c.client_tls.client_cert_auth),
        ("--quota-backend-bytes=-1", |c| c.quota_backend.is_none()),
        ("--quota-backend-bytes=16777216", |c| {
            c.quota_backend == Some(ByteSize(16 << 20))
        }),
        ("--max-request-bytes=2", |c| c.max_request == ByteSize(2)),
        ("--max-txn-ops=3", |c| c.max_txn_ops == 3),
        ("--max-concurrent-streams=4", |c| {
            c.max_concurrent_streams == 4
        }),
        ("--grpc-keepalive-min-time=1s", |c| {
            c.grpc_keepalive_min_time == Duration::from_secs(1)
        }),
        ("--grpc-keepalive-interval=0", |c| {
            c.grpc_keepalive_interval.is_none()
        }),
        ("--grpc-keepalive-timeout=0s", |c| {
            c.grpc_keepalive_timeout.is_none()
        }),
        ("--snapshot-count=0", |c| c.snapshot_count == 10_000),
        ("--snapshot-count=7", |c| c.snapshot_count == 7),
        ("--snapshot-catchup-entries=8", |c| {
            c.snapshot_catchup_entries == 8
        }),
        ("--heartbeat-interval=50", |c| {
            c.heartbeat_interval == Duration::from_millis(50)
        }),
        ("--election-timeout=50000", |c| {
            c.election_timeout == Duration::from_secs(50)
        }),
        ("--compaction-batch-limit=9", |c| {
            c.compaction_batch_limit == 9
        }),
        ("--compaction-batch-limit=-9", |c| {
            c.compaction_batch_limit == 1_000
        }),
        ("--compaction-sleep-interval=1ms", |c| {
            c.compaction_sleep_interval == Duration::from_millis(1)
        }),
        ("--watch-progress-notify-interval=1m", |c| {
            c.watch_progress_notify_interval == Duration::from_secs(60)
        }),
        ("--warning-apply-duration=-1s", |c| {
            c.warning_apply_duration.is_zero()
        }),
        ("--warning-unary-request-duration=1s", |c| {
            c.warning_unary_request_duration == Duration::from_secs(1)
        }),
        ("--warning-unary-request-duration=0", |c| {
            c.warning_unary_request_duration == Duration::from_millis(300)
        }),
        ("--metrics=extensive", |c| {
            c.metrics == MetricsLevel::Extensive
        }),
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
    // nothing in the table is supported and untested
    for flag in TABLE.iter().filter(|flag| flag.support == Support::Full) {
        let tested = cases.iter().map(|(arg, _)| *arg).chain(urls);
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
fn flags_follow_gos_syntax() {
    let name = |args: &[&str]| config(args).name;
    assert_eq!(name(&["-name=a"]), "a");
    assert_eq!(name(&["--name=a"]), "a");
    assert_eq!(name(&["--name", "a"]), "a");
    assert_eq!(name(&["-name", "-a"]), "-a");
    assert_eq!(name(&["--name=a=b"]), "a=b");
    assert_eq!(name(&["--name="]), "");
    assert_eq!(name(&["--name=a", "--name=b"]), "b");
    assert_eq!(name(&["--name=a", "--"]), "a");
    for (word, value) in [
        ("=true", true),
        ("", true),
        ("=T", true),
        ("=1", true),
        ("=0", false),
        ("=FALSE", false),
    ] {
        assert_eq!(
            config(&[&format!("--client-cert-auth{word}")])
                .client_tls
                .client_cert_auth,
            value
        );
    }
    // lists are replaced; an empty one changes nothing, as in etcd
    let urls = [
        "--listen-metrics-urls=http://127.0.0.1:1",
        "--listen-metrics-urls=http://127.0.0.1:2",
        "--listen-metrics-urls=",
    ];
    assert_eq!(config(&urls).listen_metrics_urls.len(), 1);
    assert_eq!(config(&urls).listen_metrics_urls[0].port, 2);

    for (args, line) in [
        (vec!["-nope"], "flag provided but not defined: -nope"),
        (vec!["--nope=1"], "flag provided but not defined: -nope"),
        (
            vec!["--nope", "--help"],
            "flag provided but not defined: -nope",
        ),
        (vec!["---x"], "bad flag syntax: ---x"),
        (vec!["--=x"], "bad flag syntax: --=x"),
        (vec!["-=x"], "bad flag syntax: -=x"),
        (vec!["--name"], "flag needs an argument: -name"),
        (
            vec!["--client-cert-auth=maybe"],
            r#"invalid boolean value "maybe" for -client-cert-auth: parse error"#,
        ),
        (
            vec!["--pre-vote="],
            r#"invalid boolean value "" for -pre-vote: parse error"#,
        ),
    ] {
        assert_usage(&refused(&args), line);
    }
}

#[test]
fn bad_values_end_with_the_usage() {
    let scheme = "URL scheme must be http, https, unix, or unixs";
    for (flag, value, reason) in [
        ("heartbeat-interval", "abc", "parse error".to_owned()),
        ("heartbeat-interval", "-1", "parse error".to_owned()),
        ("quota-backend-bytes", "1e3", "parse error".to_owned()),
        ("quota-backend-bytes", "", "parse error".to_owned()),
        (
            "quota-backend-bytes",
            "99999999999999999999",
            "value out of range".to_owned(),
        ),
        ("warning-apply-duration", "5", "parse error".to_owned()),
        ("grpc-keepalive-timeout", "", "parse error".to_owned()),
        (
            "max-concurrent-streams",
            "4294967296",
            r#"strconv.ParseUint: parsing "4294967296": value out of range"#.to_owned(),
        ),
        (
            "max-concurrent-streams",
            "x",
            r#"strconv.ParseUint: parsing "x": invalid syntax"#.to_owned(),
        ),
        ("listen-client-urls", "foo", format!("{scheme}: foo")),
        (
            "listen-client-urls",
            "http://127.0.0.1",
            r#"URL address does not have the form "host:port": http://127.0.0.1"#.to_owned(),
        ),
        (
            "listen-peer-urls",
            "http://127.0.0.1:1/a",
            "URL must not contain a path: http://127.0.0.1:1/a".to_owned(),
        ),
        (
            "advertise-client-urls",
            "127.0.0.1:1",
            r#"parse "127.0.0.1:1": first path segment in URL cannot contain colon"#.to_owned(),
        ),
        (
            "listen-metrics-urls",
            "unix://localhost:s1",
            r#"parse "unix://localhost:s1": invalid port ":s1" after host"#.to_owned(),
        ),
        ("cors", "*,http://a.com", format!("{scheme}: *")),
        ("initial-cluster-state", "foo", "invalid value".to_owned()),
        ("initial-cluster-state", "", "invalid value".to_owned()),
        ("discovery-fallback", "foo", "invalid value".to_owned()),
        (
            "v2-deprecation",
            "not-yet",
            r#"invalid value "not-yet""#.to_owned(),
        ),
        (
            "feature-gates",
            "X=true",
            "unrecognized feature gate: X".to_owned(),
        ),
        ("max-learners", "x", "parse error".to_owned()),
        // E8
        (
            "log-level",
            "loud",
            r#"unrecognized level: "loud", use debug, info, warn, error, dpanic, panic or fatal"#
                .to_owned(),
        ),
    ] {
        let exit = refused(&[&format!("--{flag}={value}")]);
        if flag == "log-level" {
            assert_eq!(exit.code, 2);
            assert_eq!(
                exit.stderr.lines().next().unwrap(),
                format!("invalid value {value:?} for flag -{flag}: {reason}")
            );
            continue;
        }
        assert_usage(
            &exit,
            &format!("invalid value {value:?} for flag -{flag}: {reason}"),
        );
    }
    let exit = refused(&["--listen-client-urls=http://u:hunter2@h:1"]);
    assert!(!exit.stderr.contains("hunter2"), "{}", exit.stderr);
}

#[test]
fn help_and_version_win() {
    for args in [
        vec!["--help"],
        vec!["-h"],
        vec!["-help=true"],
        vec!["-h=false"],
        vec!["--name=a", "--help", "--nope"],
    ] {
        let exit = refused(&args);
        assert_eq!(exit.code, 0);
        assert!(exit.stderr.starts_with("Usage:\n"));
        for flag in TABLE {
            let listed = exit
                .stdout
                .contains(&format!("\n  --{} '{}'\n", flag.name, flag.default));
            assert!(
                listed
                    || exit.stdout.contains(&format!("{},", flag.name))
                    || exit.stdout.trim_end().ends_with(flag.name),
                "{}",
                flag.name
            );
        }
    }
    for args in [
        vec!["--version"],
        vec!["--version", "--auto-tls"],
        vec!["--config-file=/nope", "--version"],
    ] {
        let exit = load_with(
            &args,
            &[("ETCD_NAME", "a"), ("ETCD_HEARTBEAT_INTERVAL", "x")],
        )
        .unwrap_err();
        assert_eq!(
            (exit.code, exit.stderr.as_str(), exit.records.len()),
            (0, "", 0)
        );
        let lines: Vec<_> = exit.stdout.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], "etcd Version: 3.7.1");
        assert!(lines[1].starts_with("Git SHA: ") && lines[2].starts_with("Go Version: go"));
        assert!(lines[3].starts_with("Go OS/Arch: ") && lines[3].contains('/'));
        assert_eq!(lines[4], "Quorate Version: 0.1.0");
    }
    assert_refused(
        &refused(&["--version", "foo"]),
        "failed to verify flags",
        r#""foo" is not a valid flag"#,
    );
}

#[test]
fn positional_arguments_are_refused() {
    for (args, word) in [
        (vec!["foo"], "foo"),
        (vec!["-"], "-"),
        (vec!["--", "--name=a"], "--name=a"),
        (vec!["--client-cert-auth", "false"], "false"),
        (vec!["--name", "a", "b", "--nope"], "b"),
        (vec!["--snapshot", "5"], "5"),
    ] {
        let exit = refused(&args);
        assert_refused(
            &exit,
            "failed to verify flags",
            &format!("{word:?} is not a valid flag"),
        );
        assert_eq!(
            messages(&exit.records),
            ["Running: ", "failed to verify flags"]
        );
    }
}

#[test]
fn the_environment_has_every_flag() {
    let env = [
        ("ETCD_NAME", "m1"),
        ("ETCD_HEARTBEAT_INTERVAL", "20"),
        ("ETCD_CLIENT_CERT_AUTH", "true"),
        ("ETCD_V", "1"),
    ];
    let Loaded { config, notices } = load_with(&["--data-dir=d"], &env).unwrap();
    assert_eq!((config.name.as_str(), config.data_dir), ("m1", "d".into()));
    assert_eq!(config.heartbeat_interval, Duration::from_millis(20));
    assert!(config.client_tls.client_cert_auth);
    assert_eq!(config.initial_cluster, "m1=http://localhost:2380");
    let used: Vec<_> = notices
        .iter()
        .filter(|notice| notice.msg == "recognized and used environment variable")
        .collect();
    assert_eq!(used.len(), 4);
    assert_eq!(used[0].get("variable-name"), Some(&Json::from("ETCD_NAME")));
    assert_eq!(used[0].get("variable-value"), Some(&Json::from("m1")));

    let Loaded { config, notices } = load_with(
        &["--name=a"],
        &[
            ("ETCD_NAME", ""),
            ("ETCD_MAX_WALS", ""),
            ("ETCD_FOO", "bar"),
            ("ETCD_VERSION", "3"),
            ("PATH", "x"),
            ("ETCD_VERIFY", "all"),
        ],
    )
    .unwrap();
    assert_eq!(config.name, "a"); // an empty variable is none, so it conflicts with nothing
    let warnings: Vec<_> = notices
        .iter()
        .filter(|notice| notice.level == Level::Warn && notice.msg.contains("env"))
        .collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert_eq!(
        warnings[0].get("environment-variable"),
        Some(&Json::from("ETCD_FOO=bar"))
    );
    assert_eq!(warnings[1].msg, "cannot set special environment variable");
    assert_eq!(warnings[1].get("key"), Some(&Json::from("ETCD_VERSION")));
    assert_eq!(
        warnings[2].get("environment-variable"),
        Some(&Json::from("ETCD_VERIFY=all"))
    );
}

#[test]
fn a_setting_given_twice_is_fatal() {
    let text = "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))";
    // also with equal values, and before a bad value
    for env in [
        vec![("ETCD_NAME", "a")],
        vec![("ETCD_HEARTBEAT_INTERVAL", "x"), ("ETCD_NAME", "b")],
        vec![("ETCD_NAME", "b"), ("ETCD_FOO", "1")],
    ] {
        let exit = load_with(&["--name=a"], &env).unwrap_err();
        assert_eq!(exit.code, 1);
        let fatal = exit.records.last().unwrap();
        assert_eq!((fatal.level, fatal.msg.as_ref()), (Level::Fatal, text));
        assert_eq!(
            fatal.get("environment-variable"),
            Some(&Json::from("ETCD_NAME"))
        );
    }
}

#[test]
fn bad_variables_are_refused() {
    for (name, value, reason) in [
        ("ETCD_HEARTBEAT_INTERVAL", "abc", "parse error"),
        ("ETCD_PRE_VOTE", "abc", "parse error"),
        ("ETCD_GRPC_KEEPALIVE_TIMEOUT", "5", "parse error"),
        ("ETCD_INITIAL_CLUSTER_STATE", "foo", "invalid value"),
        (
            "ETCD_MAX_CONCURRENT_STREAMS",
            "x",
            r#"strconv.ParseUint: parsing "x": invalid syntax"#,
        ),
        (
            "ETCD_LISTEN_CLIENT_HTTP_URLS",
            "http://foo",
            r#"URL address does not have the form "host:port": http://foo"#,
        ),
    ] {
        let exit = load_with(&[], &[(name, value)]).unwrap_err();
        assert_refused(
            &exit,
            "failed to verify flags",
            &format!("invalid value {value:?} for {name}: {reason}"),
        );
    }
    let exit = load_with(&[], &[("ETCD_LOG_LEVEL", "loud")]).unwrap_err();
    assert_eq!(exit.code, 2);
    assert!(
        exit.stderr
            .starts_with(r#"invalid value "loud" for ETCD_LOG_LEVEL: "#)
    );
}

/// C8: the part of `planted_secret_is_never_seen` that is decided here.
#[test]
fn planted_secrets_are_not_logged() {
    let env = [
        ("ETCD_ROOT_PASSWORD", "hunter2"),
        ("ETCD_DISCOVERY_PASSWORD", "hunter2"),
        ("ETCD_PROXY_ADDRESS", "http://u:hunter2@proxy:1"),
    ];
    let exit = load_with(&["--discovery-user=u:hunter2", "--name=m"], &env).unwrap_err();
    assert!(exit.records.len() >= 4);
    assert!(!format!("{exit:?}").contains("hunter2"), "{exit:?}");
    assert_eq!(exit.code, 1);
}

#[test]
fn what_is_not_yet_supported_is_refused_by_name() {
    for flag in TABLE.iter().filter(|flag| flag.support == Support::NotYet) {
        use super::value::Kind;
        let other = match flag.kind {
            Kind::Bool => (flag.default == "false").to_string(),
            Kind::Int | Kind::Uint | Kind::Uint32 => "7".to_owned(),
            Kind::Duration => "7s".to_owned(),
            Kind::Urls | Kind::Cors => "http://127.0.0.1:7".to_owned(),
            Kind::Gates => "LeaseCheckpoint=true".to_owned(),
            Kind::DiscoveryFallback => "proxy".to_owned(),
            _ => "other".to_owned(),
        };
        let message = |name: &str| {
            format!("{name} is not yet supported by Quorate 0.1.0; leave it out or at its default")
        };
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
            let path = super::file::key_path(flag);
            let keys: Vec<_> = path.split('.').collect();
            let text = format!(
                "{}: {in_file}{}",
                keys.join(": {"),
                "}".repeat(keys.len() - 1)
            );
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
fn flags_of_older_releases_are_unknown() {
    for name in [
        "enable-v2",
        "debug",
        "log-output",
        "log-package-levels",
        "proxy",
        "discovery",
        "discovery-proxy",
        "experimental-enable-v2v3",
        "experimental-initial-corrupt-check",
        "experimental-watch-progress-notify-interval",
        "next-cluster-version-compatible",
    ] {
        assert_usage(
            &refused(&[&format!("--{name}=x")]),
            &format!("flag provided but not defined: -{name}"),
        );
    }
}

#[test]
fn dropped_and_deprecated_flags_warn() {
    for flag in TABLE
        .iter()
        .filter(|flag| flag.support == Support::Dropped && flag.name != "v2-deprecation")
    {
        let Loaded { notices, .. } = load_with(&[&format!("--{}", flag.name)], &[]).unwrap();
        let warning = notices
            .iter()
            .find(|notice| notice.msg == "flag has no effect and is ignored")
            .unwrap();
        assert_eq!(warning.get("flag"), Some(&Json::from(flag.name)));
    }
    let warned = |args: &[&str], text: &str| {
        messages(&load_with(args, &[]).unwrap().notices)
            .iter()
            .any(|msg| *msg == text)
    };
    assert!(warned(
        &["--max-snapshots=5"],
        "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."
    ));
    assert!(warned(
        &["--v2-deprecation=gone"],
        "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input."
    ));
    assert!(warned(
        &["--quota-backend-bytes=99999999999"],
        "quota exceeds the maximum value"
    ));
    assert!(warned(
        &["--max-request-bytes=99999999"],
        "exceeded recommended request limit"
    ));
    assert!(!warned(
        &["--max-request-bytes=9"],
        "exceeded recommended request limit"
    ));
}

#[test]
fn validation_speaks_etcds_words() {
    let listen = "--listen-client-urls=http://127.0.0.1:2379";
    for (args, reason) in [
        (
            vec!["--logger=capnslog"],
            "--logger=capnslog is removed in v3.5",
        ),
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
            vec![
                "--heartbeat-interval=0",
                "--initial-advertise-peer-urls=http://:1",
            ],
            r#"--initial-advertise-peer-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))"#,
        ),
        (
            vec!["--heartbeat-interval=0", listen],
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
    let Loaded { notices, .. } = load_with(
        &["--cert-file=c", "--key-file=k", "--client-cert-auth"],
        &[],
    )
    .unwrap();
    let ignored: Vec<_> = notices
        .iter()
        .filter(|notice| notice.get("client-url").is_some())
        .collect();
    assert_eq!(ignored.len(), 2);
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
fn a_file_replaces_everything_else() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "name: m1").unwrap();
    let path = file.path().to_str().unwrap();
    // a conflict, an unknown variable, a bad value, a refused flag: all ignored
    let env = [
        ("ETCD_NAME", "x"),
        ("ETCD_FOO", "x"),
        ("ETCD_HEARTBEAT_INTERVAL", "x"),
    ];
    let Loaded { config, notices } = load_with(
        &[
            "--config-file",
            path,
            "--name=y",
            "--auto-tls",
            "--data-dir=d",
        ],
        &env,
    )
    .unwrap();
    assert_eq!(
        (config.name.as_str(), config.data_dir),
        ("m1", "m1.etcd".into())
    );
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
strict-reconfig-check: no
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
    assert!(!config.strict_reconfig_check);
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.log.outputs, [Output::Stderr, Output::Stdout]);
    assert_eq!(config.client_tls.cert_file, Some("c".into()));
    assert!(config.client_tls.client_cert_auth);
    // listening elsewhere does not make advertising mandatory here
    assert_eq!(
        config.advertise_client_urls[0].to_string(),
        "http://localhost:2379"
    );

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
        (
            "heartbeat-interval: -5",
            "heartbeat-interval: expected an integer",
        ),
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
        (
            "pre-vote: 'true'",
            "pre-vote: expected true or false, found a string",
        ),
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
        assert!(
            error.starts_with("read ") && error.contains(key),
            "{text}: {error}"
        );
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
        (
            "initial-cluster-state: foo",
            r#"unexpected clusterState "foo""#,
        ),
        ("feature-gates: X=true", "unrecognized feature gate: X"),
        (
            "heartbeat-interval: 300",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
    ] {
        assert_refused(
            &from_file(text).unwrap_err(),
            "failed to verify flags",
            reason,
        );
    }
    assert_eq!(from_file("log-level: loud").unwrap_err().code, 2);
}

#[test]
fn the_table_is_consistent() {
    for (index, flag) in TABLE.iter().enumerate() {
        assert_eq!(
            super::table::find(flag.name),
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

#[test]
fn nothing_is_written_before_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let arg = format!("--data-dir={}", data.display());
    for bad in [
        "--auto-tls",
        "--heartbeat-interval=0",
        "--listen-peer-urls=https://127.0.0.1:1",
        "--nope",
    ] {
        assert_ne!(refused(&[&arg, bad]).code, 0);
    }
    load_with(&[&arg], &[]).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
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
        (
            "listen-client-urls",
            Json::from(vec!["http://localhost:2379"]),
        ),
        ("initial-cluster", Json::from("m1=http://localhost:2380")),
        ("pre-vote", Json::from(true)),
    ] {
        assert_eq!(record.get(key), Some(&value), "{key}");
    }
    assert_eq!(
        config(&["--name=m1"])
            .start_record(true)
            .get("initial-cluster"),
        Some(&Json::from(""))
    );
}

#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let args = [
        OsString::from("quorate"),
        OsString::from_vec(b"--name=\xff".to_vec()),
    ];
    let exit = load(args.into_iter(), std::iter::empty()).unwrap_err();
    assert_eq!(exit.code, 2);
    assert!(
        exit.stderr.starts_with("argument 1 is not valid UTF-8"),
        "{}",
        exit.stderr
    );
}
