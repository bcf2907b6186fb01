//! `ETCD_…` variables.

use super::*;

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
        assert_eq!(fatal.get("environment-variable"), Some(&Json::from("ETCD_NAME")));
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
    assert!(exit.stderr.starts_with(r#"invalid value "loud" for ETCD_LOG_LEVEL: "#));
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
fn a_value_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let load = |name: &str, args: &[&str]| {
        let args = std::iter::once("quorate").chain(args.iter().copied());
        let value = OsString::from_vec(b"/srv/\xff".to_vec());
        load(args.map(OsString::from), [(OsString::from(name), value)].into_iter())
    };
    assert_refused(
        &load("ETCD_DATA_DIR", &[]).unwrap_err(),
        "failed to verify flags",
        "invalid value \"/srv/\u{fffd}\" for ETCD_DATA_DIR: it is not valid UTF-8",
    );
    load("ETCD_NOBODYS", &[]).unwrap();
    load("PATH", &[]).unwrap();
}
