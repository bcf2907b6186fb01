//! A member that can't have the place it is started for says why, before it writes anything.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use quorate_kit::{Config, Node, http};

use crate::support::{Place, binary, start};

/// Starts next to `running`, with a list that names both; what it says before it ends.
fn refused(running: &Node, state: &str) -> String {
    let place = Place::new();
    let mut config = Config::new(binary(), place.path());
    config.name = "second".to_owned();
    let other = &running.config;
    config.initial_cluster = format!("second={},{}={}", config.peer_url(), other.name, other.peer_url());
    config.initial_cluster_state = state.to_owned();
    let mut node = Node::launch(config);
    let status = node.wait_end(Duration::from_secs(20));
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(!node.config.data_dir().exists(), "a refusal leaves no trace");
    let fatal = log.lines().find(|line| line.contains(r#""level":"fatal""#)).unwrap();
    let fatal: serde_json::Value = serde_json::from_str(fatal).unwrap();
    assert_eq!(fatal["msg"], "discovery failed");
    fatal["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_start_that_does_not_fit_the_others_is_refused() {
    let own = start();
    let header = &own.node.etcdctl().json(&["get", "a"])["header"];
    let cluster = format!("{:x}", header["cluster_id"].as_u64().unwrap());
    let said = refused(&own.node, "new");
    let wanted = format!(
        "{} is a member of cluster {cluster}, and these settings found cluster ",
        own.node.config.peer_url()
    );
    assert!(said.starts_with(&wanted), "{said}");
    let said = refused(&own.node, "existing");
    let wanted = format!("error validating peerURLs {{ClusterID:{cluster} Members:[");
    assert!(said.starts_with(&wanted), "{said}");
    assert!(
        said.ends_with("member count is unequal (the cluster has 1, --initial-cluster names 2)"),
        "{said}"
    );
}

#[test]
fn nobody_to_join_is_told() {
    let mut own = start();
    own.node.kill();
    assert_eq!(
        refused(&own.node, "existing"),
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
    );
}

#[test]
fn the_peer_port_tells_who_serves_where() {
    let mut own = start();
    let config = own.node.config.clone();
    for _ in 0..2 {
        let answer = http::get(SocketAddr::from(([127, 0, 0, 1], config.peer_port)), "/members").unwrap();
        let header = &own.node.etcdctl().json(&["get", "a"])["header"];
        let cluster = format!("{:x}", header["cluster_id"].as_u64().unwrap());
        assert_eq!(
            (answer.status, answer.header("x-etcd-cluster-id")),
            (200, Some(cluster.as_str()))
        );
        let members: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let wanted = serde_json::json!([{
            "id": header["member_id"],
            "peerURLs": [config.peer_url()],
            "name": config.name,
            "clientURLs": [config.client_url()],
        }]);
        assert_eq!(members, wanted);
        own.node.kill();
        own.node.restart();
    }
}

/// Also after starts that were killed: what a start told others is told apart by its number.
#[test]
fn every_start_is_counted() {
    let mut own = start();
    let boot = own.node.config.data_dir().join("member/boot");
    for number in 1..4 {
        let count = format!("boot {number:016x} {number:016x}\n");
        let content = fs::read(&boot).unwrap();
        assert!(
            content.windows(count.len()).any(|bytes| bytes == count.as_bytes()),
            "start {number}"
        );
        own.node.kill();
        own.node.restart();
    }
}
