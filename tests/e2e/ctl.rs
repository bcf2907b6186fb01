//! Debian's etcdctl 3.4, unmodified.

use std::time::Duration;

use quorate_kit::tls::Material;
use quorate_kit::{Etcdctl, Node};
use serde_json::Value;

use crate::support::{Own, config, start, start_with};

fn secure() -> Own {
    let (mut config, dir) = config();
    config.tls = Some(Material::create(&dir.path().join("tls")));
    config.metrics_port = Some(quorate_kit::ports::free());
    Own {
        node: Node::start(config),
        dir,
    }
}

#[test]
fn key_value_commands_over_plaintext() {
    key_value_commands(&start().node.etcdctl());
}

#[test]
fn key_value_commands_over_mutual_tls() {
    key_value_commands(&secure().node.etcdctl());
}

#[test]
fn leases_and_watches_over_plaintext() {
    let own = start();
    leases(&own.node.etcdctl());
    watches(&own.node.etcdctl());
}

#[test]
fn leases_and_watches_over_mutual_tls() {
    let own = secure();
    leases(&own.node.etcdctl());
    watches(&own.node.etcdctl());
}

#[test]
fn cluster_commands_over_plaintext() {
    cluster(&start().node);
}

#[test]
fn cluster_commands_over_mutual_tls() {
    cluster(&secure().node);
}

#[test]
fn get_sorts_by_every_field_both_ways() {
    let own = start();
    let ctl = own.node.etcdctl();
    // created b, a, c; changed last b, c, a; versions a 3, b 1, c 2; values a 2, b 3, c 1
    for (key, value) in [("b", "3"), ("a", "x"), ("c", "x"), ("a", "x"), ("c", "1"), ("a", "2")] {
        ctl.ok(&["put", key, value]);
    }
    let sorted = |flags: &[&str]| {
        let mut call = vec!["get", "", "--from-key", "--keys-only"];
        call.extend_from_slice(flags);
        ctl.ok(&call).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (by, ascending, descending) in [
        ("CREATE", "b a c", "c a b"),
        ("MODIFY", "b c a", "a c b"),
        ("VERSION", "b c a", "a c b"),
        ("VALUE", "c a b", "b a c"),
        ("KEY", "a b c", "c b a"),
    ] {
        let by_flag = format!("--sort-by={by}");
        assert_eq!(sorted(&[&by_flag]), ascending, "{by}, no order given");
        assert_eq!(sorted(&[&by_flag, "--order=ASCEND"]), ascending, "{by} ascending");
        assert_eq!(sorted(&[&by_flag, "--order=DESCEND"]), descending, "{by} descending");
        let first = descending.split(' ').next().unwrap();
        assert_eq!(
            sorted(&[&by_flag, "--order=DESCEND", "--limit=1"]),
            first,
            "{by}, the limit is after the sort"
        );
    }
    assert_eq!(sorted(&["--order=ASCEND"]), "a b c");
    assert_eq!(sorted(&["--order=DESCEND"]), "c b a");
    assert!(!ctl.call(&["get", "a", "--order=SIDEWAYS"]).ok);
    assert!(!ctl.call(&["get", "a", "--sort-by=COLOUR"]).ok);
}

/// The quota, from the first refused put to the first that is taken again.
#[test]
fn quota_raises_the_alarm_and_disarm_lifts_it() {
    const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
    let mut own = start_with(|config| config.flag("--quota-backend-bytes=16777216"));
    let ctl = own.node.etcdctl();
    let put = |key: &str| ctl.call_with_input(&["put", key], &"v".repeat(1 << 20));
    let mut fitted = 0;
    let refused = loop {
        let said = put(&format!("big/{fitted}"));
        if !said.ok {
            break said.err;
        }
        fitted += 1;
        assert!(fitted < 32, "{fitted} MiB were put into 16");
    };
    assert!(refused.contains(NO_SPACE), "{refused}");
    assert!(fitted >= 8, "only {fitted} MiB were put into 16");
    let member = ctl.json(&["member", "list"])["members"][0]["ID"].as_u64().unwrap();
    let alarm = format!("memberID:{member} alarm:NOSPACE \n");
    let health = |node: &Node| {
        let answer = quorate_kit::http::get(node.address(), "/health").unwrap();
        (answer.status, answer.text())
    };
    let sick = (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n".to_owned());
    for restarted in [false, true] {
        if restarted {
            own.node.terminate();
            own.node.relaunch();
            quorate_kit::wait::until("the node to answer", Duration::from_secs(30), || {
                own.node.assert_alive();
                ctl.call(&["get", "big/0", "--keys-only"]).ok.then_some(())
            });
        }
        assert_eq!(ctl.ok(&["alarm", "list"]), alarm, "restarted: {restarted}");
        assert_eq!(health(&own.node), sick, "restarted: {restarted}");
        let excluded = quorate_kit::http::get(own.node.address(), "/health?exclude=NOSPACE").unwrap();
        assert_eq!(
            (excluded.status, excluded.text().as_str()),
            (200, r#"{"health":"true","reason":""}"#)
        );
        // the alarm holds for small puts too
        assert!(ctl.fails(&["put", "small", "1"]).contains(NO_SPACE));
        assert_eq!(ctl.ok(&["get", "big/0", "--keys-only"]), "big/0\n\n");
    }
    assert_eq!(ctl.ok(&["del", "--prefix", "big/"]), format!("{fitted}\n"));
    let revision = ctl.json(&["get", "none"])["header"]["revision"].to_string();
    ctl.ok(&["compaction", "--physical", &revision]);
    assert!(
        ctl.fails(&["put", "small", "1"]).contains(NO_SPACE),
        "an alarm stays until it is disarmed"
    );
    assert_eq!(ctl.ok(&["alarm", "disarm"]), alarm);
    assert_eq!(ctl.ok(&["alarm", "list"]), "");
    assert_eq!(health(&own.node), (200, r#"{"health":"true","reason":""}"#.to_owned()));
    assert_eq!(ctl.ok(&["put", "small", "1"]), "OK\n");
    assert!(put("big/again").ok, "there is room again");
}

#[test]
fn hashkv_is_the_same_after_a_restart() {
    let mut own = start();
    let ctl = own.node.etcdctl();
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        ctl.ok(&["put", key, value]);
    }
    ctl.ok(&["del", "b"]);
    ctl.ok(&["compaction", "4"]);
    let before = ctl.json(&["endpoint", "hashkv"]);
    let hash = before[0]["HashKV"]["hash"].as_u64().unwrap();
    assert_ne!(hash, 0, "{before}");
    own.node.kill();
    own.node.restart();
    let after = ctl.json(&["endpoint", "hashkv"]);
    assert_eq!(after[0]["HashKV"]["hash"].as_u64(), Some(hash));
    assert_eq!(after[0]["HashKV"]["compact_revision"], 4);
    ctl.ok(&["put", "a", "5"]);
    let changed = ctl.json(&["endpoint", "hashkv"]);
    assert_ne!(changed[0]["HashKV"]["hash"].as_u64(), Some(hash));
}

#[test]
fn a_client_without_our_certificate_gets_nothing() {
    let own = secure();
    let material = own.node.config.tls.clone().unwrap();
    let url = own.node.config.client_url();
    let quick = ["--dial-timeout=1s", "--command-timeout=2s", "get", "a"];
    Etcdctl::new(&url)
        .with_pair(&material, &material.stranger)
        .fails(&quick);
    Etcdctl::new(&url).fails(&quick);
    Etcdctl::new(&url.replace("https", "http")).fails(&quick);
    own.node.etcdctl().ok(&["put", "a", "1"]);
}

fn key_value_commands(ctl: &Etcdctl) {
    assert_eq!(ctl.ok(&["put", "a", "1"]), "OK\n");
    assert_eq!(ctl.ok(&["put", "--prev-kv", "a", "2"]), "OK\na\n1\n");
    assert_eq!(ctl.ok(&["put", "--ignore-value", "a"]), "OK\n");
    assert!(
        ctl.fails(&["put", "--ignore-value", "nowhere"])
            .contains("etcdserver: key not found")
    );
    assert!(
        ctl.fails(&["put", "--lease=404", "a", "1"])
            .contains("etcdserver: requested lease not found")
    );
    for (key, value) in [("b", "9"), ("c", "8"), ("p/1", "x"), ("p/2", "y"), ("p/3", "z")] {
        ctl.ok(&["put", key, value]);
    }
    assert_eq!(ctl.ok(&["get", "a"]), "a\n2\n");
    assert_eq!(ctl.ok(&["get", "nowhere"]), "");
    assert_eq!(ctl.ok(&["get", "a", "c"]), "a\n2\nb\n9\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "p/"]), "p/1\nx\np/2\ny\np/3\nz\n");
    assert_eq!(ctl.ok(&["get", "--from-key", "p/2"]), "p/2\ny\np/3\nz\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "p/", "--limit=1"]), "p/1\nx\n");
    assert_eq!(
        ctl.ok(&["get", "--prefix", "p/", "--keys-only"]),
        "p/1\n\np/2\n\np/3\n\n"
    );
    assert_eq!(ctl.ok(&["get", "--prefix", "p/", "--print-value-only"]), "x\ny\nz\n");
    assert_eq!(
        ctl.ok(&["get", "--prefix", "p/", "--order=DESCEND"]),
        "p/3\nz\np/2\ny\np/1\nx\n"
    );
    assert_eq!(ctl.ok(&["get", "a", "d", "--sort-by=VALUE"]), "a\n2\nc\n8\nb\n9\n");
    assert_eq!(
        ctl.ok(&["get", "a", "d", "--sort-by=VERSION", "--order=DESCEND", "--limit=1"]),
        "a\n2\n"
    );
    assert_eq!(ctl.ok(&["get", "a", "--rev=2"]), "a\n1\n");
    assert_eq!(ctl.ok(&["get", "a", "--consistency=s"]), "a\n2\n");
    assert_eq!(ctl.ok(&["get", "--hex", "a"]), "\\x61\n\\x32\n");
    assert!(
        ctl.fails(&["get", "a", "--rev=1000"])
            .contains("etcdserver: mvcc: required revision is a future revision")
    );

    let got = ctl.json(&["get", "a"]);
    assert_eq!(got["kvs"][0]["key"], "YQ==");
    assert_eq!(got["kvs"][0]["version"], 3);
    assert_eq!(got["kvs"][0]["create_revision"], 2);
    assert_eq!(got["kvs"][0]["mod_revision"], 4);
    assert_eq!(got["header"]["revision"], 9);
    assert_eq!(got["count"], 1);

    assert_eq!(ctl.ok(&["del", "nowhere"]), "0\n");
    assert_eq!(ctl.ok(&["del", "--prev-kv", "p/1"]), "1\np/1\nx\n");
    assert_eq!(ctl.ok(&["del", "--prefix", "p/"]), "2\n");

    let taken = ctl.call_with_input(
        &["txn"],
        "version(\"a\") = \"3\"\n\nput a then\nget b\n\nput a else\n\n",
    );
    assert_eq!(
        (taken.ok, taken.out.as_str()),
        (true, "SUCCESS\n\nOK\n\nb\n9\n"),
        "{}",
        taken.err
    );
    let not = ctl.call_with_input(
        &["txn"],
        "value(\"a\") = \"3\"\nmod(\"b\") > \"0\"\n\nput a then\n\ndel c\n\n",
    );
    assert_eq!((not.ok, not.out.as_str()), (true, "FAILURE\n\n1\n"), "{}", not.err);
    let twice = ctl.call_with_input(&["txn"], "\nput a 1\nput a 2\n\n\n");
    assert!(
        twice.err.contains("etcdserver: duplicate key given in txn request"),
        "{}",
        twice.err
    );

    let now = ctl.json(&["get", "a"])["header"]["revision"]
        .as_i64()
        .unwrap()
        .to_string();
    assert_eq!(ctl.ok(&["compaction", &now]), format!("compacted revision {now}\n"));
    assert_eq!(ctl.ok(&["get", "a", &format!("--rev={now}")]), "a\nthen\n");
    assert!(
        ctl.fails(&["get", "a", "--rev=2"])
            .contains("etcdserver: mvcc: required revision has been compacted")
    );
    assert!(
        ctl.fails(&["compaction", "2"])
            .contains("etcdserver: mvcc: required revision has been compacted")
    );
    assert_eq!(ctl.ok(&["compaction", "--physical", &ctl_put(ctl)]).lines().count(), 1);
}

/// Puts once more and gives the revision.
fn ctl_put(ctl: &Etcdctl) -> String {
    ctl.json(&["put", "a", "again"])["header"]["revision"].to_string()
}

fn leases(ctl: &Etcdctl) {
    let granted = ctl.ok(&["lease", "grant", "600"]);
    let id = granted
        .strip_prefix("lease ")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(600s)\n"));
    assert_eq!(id.len(), 16, "{granted}");
    ctl.ok(&["put", &format!("--lease={id}"), "leased/1", "1"]);
    ctl.ok(&["put", &format!("--lease={id}"), "leased/2", "2"]);

    let left = ctl.ok(&["lease", "timetolive", &id]);
    assert!(
        left.starts_with(&format!("lease {id} granted with TTL(600s), remaining(")),
        "{left}"
    );
    let with_keys = ctl.ok(&["lease", "timetolive", "--keys", &id]);
    assert!(
        with_keys.contains("leased/1") && with_keys.contains("leased/2"),
        "{with_keys}"
    );
    assert_eq!(
        ctl.ok(&["lease", "timetolive", "404"]),
        "lease 0000000000000404 already expired\n"
    );
    assert_eq!(ctl.ok(&["lease", "list"]), format!("found 1 leases\n{id}\n"));
    assert_eq!(
        ctl.ok(&["lease", "keep-alive", "--once", &id]),
        format!("lease {id} keepalived with TTL(600)\n")
    );
    assert_eq!(ctl.json(&["lease", "grant", "5"])["TTL"], 5);

    assert_eq!(ctl.ok(&["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(ctl.ok(&["get", "--prefix", "leased/"]), "");
    assert!(
        ctl.fails(&["lease", "revoke", &id])
            .contains("etcdserver: requested lease not found")
    );

    // a lease that nobody keeps alive takes its key along, and not before its time
    let began = std::time::Instant::now();
    let short = ctl.json(&["lease", "grant", "2"]);
    let id = format!("{:x}", short["ID"].as_i64().unwrap());
    ctl.ok(&["put", &format!("--lease={id}"), "brief", "1"]);
    quorate_kit::wait::until("the lease to end", Duration::from_secs(10), || {
        ctl.ok(&["get", "brief"]).is_empty().then_some(())
    });
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "the key went after {:?}",
        began.elapsed()
    );
}

fn watches(ctl: &Etcdctl) {
    let first = ctl.json(&["put", "w/1", "old"])["header"]["revision"].as_i64().unwrap();
    ctl.ok(&["put", "w/1", "new"]);
    ctl.ok(&["del", "w/1"]);
    let watch = ctl.follow(&["watch", "--prefix", "--prev-kv", &format!("--rev={first}"), "w/"]);
    // type, then the previous pair where there is one, then the pair
    let history = watch.lines(3 + 5 + 5).join("|");
    assert_eq!(history, "PUT|w/1|old|PUT|w/1|old|w/1|new|DELETE|w/1|new|w/1|");
    ctl.ok(&["put", "w/2", "live"]);
    assert_eq!(watch.lines(3), ["PUT", "w/2", "live"]);
}

fn cluster(node: &Node) {
    let ctl = node.etcdctl();
    let url = node.config.client_url();
    let listed = ctl.json(&["member", "list"]);
    let member = &listed["members"][0];
    let id = format!("{:x}", member["ID"].as_u64().unwrap());
    assert_eq!(member["name"], "default");
    assert_eq!(member["clientURLs"], Value::from(vec![url.clone()]));
    let peer = node.config.peer_url();
    assert_eq!(
        ctl.ok(&["member", "list"]),
        format!("{id}, started, default, {peer}, {url}, false\n")
    );
    let table = ctl.ok(&["-w", "table", "member", "list"]);
    assert!(table.contains("| started | default |"), "{table}");

    let said = ctl.call(&["endpoint", "health"]);
    let both = said.out + &said.err;
    assert!(
        said.ok && both.contains(&format!("{url} is healthy: successfully committed proposal")),
        "{both}"
    );

    // etcdctl 3.4 puts the whole URL into `:authority` for this command and the next.
    let status = ctl.json(&["endpoint", "status"]);
    let status = &status[0]["Status"];
    assert_eq!(status["leader"], member["ID"]);
    assert_eq!(status["header"]["member_id"], member["ID"]);
    assert!(status["dbSize"].as_i64().unwrap() > 0, "{status}");
    assert!(
        status["raftIndex"].as_i64() >= status["raftAppliedIndex"].as_i64(),
        "{status}"
    );
    let version = node.config.binary.version;
    let version = format!("{}.{}.{}", version.0, version.1, version.2);
    assert_eq!(status["version"], version.as_str());
    let simple = ctl.ok(&["endpoint", "status"]);
    assert!(simple.starts_with(&format!("{url}, {id}, {version}, ")), "{simple}");
    assert!(simple.contains(", true, false, "), "is leader, is no learner: {simple}");
    let table = ctl.ok(&["-w", "table", "endpoint", "status"]);
    assert!(table.contains(&id) && table.contains("RAFT APPLIED INDEX"), "{table}");
    let finished = format!("Finished defragmenting etcd member[{url}]\n");
    assert_eq!(ctl.ok(&["defrag"]), finished);

    let revision = ctl.json(&["put", "hashed", "1"])["header"]["revision"].clone();
    let hash = ctl.json(&["endpoint", "hashkv"]);
    assert_eq!(hash[0]["Endpoint"], url.as_str(), "{hash}");
    assert_eq!(hash[0]["HashKV"]["header"]["revision"], revision, "{hash}");
    assert!(hash[0]["HashKV"]["hash"].as_u64().unwrap() > 0, "{hash}");
    // With the endpoint as plain host and port, which needs no repair.
    let plain = url.replace("http://", "").replace("https://", "");
    let simple = ctl.with_endpoints(&plain).ok(&["endpoint", "status"]);
    assert!(simple.starts_with(&format!("{plain}, {id}, {version}, ")), "{simple}");

    let health = ctl.json(&["endpoint", "health"]);
    assert_eq!(health[0]["health"], true);
    assert_eq!(health[0]["endpoint"], url.as_str());
    let said = ctl.call(&["endpoint", "health"]);
    let both = said.out + &said.err;
    assert!(
        said.ok && both.contains(&format!("{url} is healthy: successfully committed proposal")),
        "{both}"
    );
    let table = ctl.ok(&["-w", "table", "endpoint", "health"]);
    assert!(table.contains("|   true |"), "{table}");
}
