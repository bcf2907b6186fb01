//! The HTTP endpoints beside the key-value API, as `http-endpoints.md` has them for 3.7.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use quorate_kit::http::{Answer, get, request};
use serde_json::Value;

use crate::support::{start, start_with};

fn plain(answer: &Answer) -> bool {
    answer.header("content-type") == Some("text/plain; charset=utf-8")
}

#[test]
fn health_says_true_in_exactly_29_bytes() {
    let own = start();
    for path in [
        "/health",
        "/health?serializable=true",
        "/health?exclude=NOSPACE&exclude=CORRUPT",
        "/health?x=y",
    ] {
        let answer = get(own.node.address(), path).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, r#"{"health":"true","reason":""}"#),
            "{path}"
        );
        assert!(plain(&answer), "{answer:?}");
    }
    for method in ["POST", "HEAD", "PUT", "DELETE"] {
        let answer = request(own.node.address(), method, "/health", &[], b"").unwrap();
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("GET")),
            "{method}: {answer:?}"
        );
        if method != "HEAD" {
            assert_eq!(answer.text(), "Method Not Allowed\n");
        }
    }
}

#[test]
fn livez_and_readyz_name_their_checks() {
    let own = start();
    let at = own.node.address();
    for (root, checks) in [
        ("/livez", vec!["serializable_read"]),
        (
            "/readyz",
            vec![
                "data_corruption",
                "serializable_read",
                "linearizable_read",
                "non_learner",
            ],
        ),
    ] {
        let answer = get(at, root).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"), "{root}");
        assert!(
            plain(&answer) && answer.header("x-content-type-options") == Some("nosniff"),
            "{answer:?}"
        );

        let verbose = get(at, &format!("{root}?verbose")).unwrap().text();
        let mut lines: Vec<&str> = verbose.lines().collect();
        assert_eq!(lines.pop(), Some("ok"), "{verbose}");
        let shown: BTreeSet<&str> = lines.into_iter().collect();
        let expected: Vec<String> = checks.iter().map(|check| format!("[+]{check} ok")).collect();
        assert_eq!(shown, expected.iter().map(String::as_str).collect(), "{root}");

        for check in &checks {
            let path = format!("{root}/{check}");
            assert_eq!(get(at, &path).unwrap().text(), "ok\n", "{path}");
            assert_eq!(
                get(at, &format!("{path}?verbose")).unwrap().text(),
                format!("[+]{check} ok\nok\n")
            );
        }
        let without = format!("{root}?verbose&exclude=serializable_read&exclude=no_such_check");
        let without = get(at, &without).unwrap();
        assert_eq!(without.status, 200);
        assert!(!without.text().contains("serializable_read ok"), "{}", without.text());
        assert_eq!(get(at, &format!("{root}/no_such_check")).unwrap().status, 404);
        let wrong = request(at, "POST", root, &[], b"").unwrap();
        assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET")));
    }
    assert_eq!(get(at, "/livez?exclude=serializable_read").unwrap().text(), "ok\n");
}

#[test]
fn version_tells_the_etcd_version_and_the_agreed_one() {
    let own = start();
    // the cluster version is agreed a moment after the start
    let answer = quorate_kit::wait::until("the cluster version", std::time::Duration::from_secs(10), || {
        let answer = get(own.node.address(), "/version").unwrap();
        (!answer.text().contains("not_decided")).then_some(answer)
    });
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    assert!(!answer.text().ends_with('\n'));
    let version: Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(version["etcdserver"], "3.7.1");
    assert_eq!(version["etcdcluster"], "3.7.0");
    quorate_kit::wait::until("the storage version", std::time::Duration::from_secs(10), || {
        let version = get(own.node.address(), "/version").unwrap().text();
        (version == r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#).then_some(())
    });
}

#[test]
fn unknown_paths_are_plain_404() {
    let own = start_with(|mut config| {
        config.metrics_port = Some(quorate_kit::ports::free());
        config
    });
    let metrics = own.node.metrics_address().unwrap();
    for (at, path) in [
        (own.node.address(), "/"),
        (own.node.address(), "/nothing"),
        (own.node.address(), "/v3alpha/kv/range"),
        (own.node.address(), "/members"),
        (metrics, "/version"),
        (metrics, "/v3/kv/range"),
        (metrics, "/nothing"),
    ] {
        let answer = get(at, path).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert!(
            plain(&answer) && answer.header("x-content-type-options") == Some("nosniff"),
            "{answer:?}"
        );
    }
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(get(metrics, path).unwrap().status, 200, "{path} on the metrics port");
    }
}

#[test]
fn metrics_have_etcds_names() {
    let own = start();
    own.node.etcdctl().ok(&["put", "a", "1"]);
    own.node.etcdctl().ok(&["get", "a"]);
    let answer = get(own.node.address(), "/metrics").unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4"),
        "{answer:?}"
    );
    let text = answer.text();
    let families: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.split(' ').next())
        .collect();
    for name in [
        "etcd_cluster_version",
        "etcd_debugging_mvcc_keys_total",
        "etcd_disk_backend_commit_duration_seconds",
        "etcd_disk_wal_fsync_duration_seconds",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_mvcc_put_total",
        "etcd_mvcc_range_total",
        "etcd_server_has_leader",
        "etcd_server_id",
        "etcd_server_is_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "etcd_server_version",
        "grpc_server_handled_total",
        "process_open_fds",
        "process_resident_memory_bytes",
    ] {
        assert!(families.contains(name), "no {name} among {families:?}");
    }
    for line in ["etcd_server_has_leader 1", "etcd_server_is_leader 1"] {
        assert!(text.lines().any(|found| found == line), "no line {line}");
    }
    assert!(text.contains(r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok() || value == "+Inf", "not a sample: {line}");
    }
}

/// A24, A25: the rules for other origins and hosts that etcd has by default.
#[test]
fn cors_and_host_rules() {
    let own = start_with(|config| {
        config
            .flag("--host-whitelist=good.test,127.0.0.1")
            .flag("--cors=http://good.test:80")
    });
    let at = own.node.address();
    let from = |host: &str, origin: &str| request(at, "GET", "/health", &[("Host", host), ("Origin", origin)], b"");
    let refused = from("rebound.test:2379", "http://good.test:80").unwrap();
    assert_eq!(refused.status, 421, "{refused:?}");
    let good = from("good.test:2379", "http://good.test:80").unwrap();
    assert_eq!(
        (good.status, good.header("access-control-allow-origin")),
        (200, Some("http://good.test:80"))
    );
    let other = from("good.test:2379", "http://evil.test:80").unwrap();
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}

/// `--listen-client-http-urls`: HTTP there, gRPC on the other client ports, and neither where the other is.
#[test]
fn http_can_have_ports_of_its_own() {
    let port = quorate_kit::ports::free();
    let own = start_with(|mut config| {
        config.metrics_port = Some(quorate_kit::ports::free());
        config.flag(&format!("--listen-client-http-urls=http://127.0.0.1:{port}"))
    });
    let http: SocketAddr = ([127, 0, 0, 1], port).into();
    for path in ["/health", "/version", "/metrics", "/readyz"] {
        assert_eq!(get(http, path).unwrap().status, 200, "{path}");
        assert!(
            get(own.node.address(), path).is_err(),
            "{path} is answered on a port of gRPC"
        );
    }
    own.node.etcdctl().ok(&["put", "a", "1"]);
    let elsewhere = own.node.etcdctl().with_endpoints(&format!("http://{http}"));
    let put = elsewhere.call(&["--command-timeout=1s", "put", "a", "2"]);
    assert!(!put.ok, "{put:?}");
    assert_eq!(own.node.etcdctl().ok(&["get", "a", "--print-value-only"]), "1\n");
}
