//! The kit itself, driven against Debian's etcd.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt;

use quorate_kit::tls::Material;
use quorate_kit::{Binary, Config, Node};

fn debian() -> Binary {
    Binary::at("/usr/bin/etcd")
}

#[test]
fn a_node_keeps_its_data_over_kill_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(Config::new(debian(), dir.path()));
    assert_eq!(node.etcdctl().ok(&["put", "a", "1"]), "OK\n");
    node.kill();
    assert!(!node.is_running());
    node.restart();
    assert_eq!(node.etcdctl().ok(&["get", "a"]), "a\n1\n");
    let (status, _) = node.terminate();
    assert_eq!(status.signal(), Some(15), "etcd ends by the signal it was sent");
}

#[test]
fn mutual_tls_lets_the_client_in_and_the_stranger_out() {
    let dir = tempfile::tempdir().unwrap();
    let material = Material::create(&dir.path().join("tls"));
    let mut config = Config::new(debian(), dir.path());
    config.tls = Some(material.clone());
    config.metrics_port = Some(quorate_kit::ports::free());
    // 3.4 would serve a plaintext metrics port too, which is what the health check of the kit uses
    let node = Node::start(config);
    node.etcdctl().ok(&["put", "a", "1"]);
    let stranger = quorate_kit::Etcdctl::new(&node.config.client_url()).with_pair(&material, &material.stranger);
    stranger.fails(&["--dial-timeout=1s", "--command-timeout=2s", "get", "a"]);
}
