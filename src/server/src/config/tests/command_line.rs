//! Go's flag syntax, `--help`, `--version`, and what is said about a line that can't be read.

use super::super::table::{Support, TABLE};
use super::*;

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
        (vec!["--nope", "--help"], "flag provided but not defined: -nope"),
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
        ("v2-deprecation", "not-yet", r#"invalid value "not-yet""#.to_owned()),
        ("feature-gates", "X=true", "unrecognized feature gate: X".to_owned()),
        ("max-learners", "x", "parse error".to_owned()),
        // E8
        (
            "log-level",
            "loud",
            r#"unrecognized level: "loud", use debug, info, warn, error, dpanic, panic or fatal"#.to_owned(),
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
        assert_usage(&exit, &format!("invalid value {value:?} for flag -{flag}: {reason}"));
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
        let exit = load_with(&args, &[("ETCD_NAME", "a"), ("ETCD_HEARTBEAT_INTERVAL", "x")]).unwrap_err();
        assert_eq!((exit.code, exit.stderr.as_str(), exit.records.len()), (0, "", 0));
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
        assert_eq!(messages(&exit.records), ["Running: ", "failed to verify flags"]);
    }
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
    let warned = |args: &[&str], text: &str| messages(&load_with(args, &[]).unwrap().notices).contains(&text);
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
fn arguments_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let args = [OsString::from("quorate"), OsString::from_vec(b"--name=\xff".to_vec())];
    let exit = load(args.into_iter(), std::iter::empty()).unwrap_err();
    assert_eq!(exit.code, 2);
    assert!(
        exit.stderr.starts_with("argument 1 is not valid UTF-8"),
        "{}",
        exit.stderr
    );
}
