//! The `etcd-client` crate: the client that Rust programs use.

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity, PutOptions,
    TlsOptions, Txn, TxnOp, WatchOptions,
};
use quorate_kit::Node;
use quorate_kit::tls::Material;

use crate::support::{config, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_trip_over_plaintext() {
    let own = start();
    round_trip(Client::connect([own.node.config.client_url()], None).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_trip_over_mutual_tls() {
    let (mut config, dir) = config();
    let material = Material::create(&dir.path().join("tls"));
    config.tls = Some(material.clone());
    config.metrics_port = Some(quorate_kit::ports::free());
    let node = Node::start(config);
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&material.ca)))
        .identity(Identity::from_pem(
            read(&material.client.cert),
            read(&material.client.key),
        ))
        .domain_name("localhost");
    let options = ConnectOptions::new().with_tls(tls);
    round_trip(
        Client::connect([node.config.client_url()], Some(options))
            .await
            .unwrap(),
    )
    .await;
}

async fn round_trip(mut client: Client) {
    let mut watch = client
        .watch("k/", Some(WatchOptions::new().with_prefix().with_prev_key()))
        .await
        .unwrap();

    let lease = client.lease_grant(300, None).await.unwrap().id();
    client
        .put("k/1", "one", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    let before = client
        .put(
            "k/1",
            "uno",
            Some(PutOptions::new().with_prev_key().with_ignore_lease()),
        )
        .await
        .unwrap();
    assert_eq!(before.prev_key().unwrap().value(), b"one");
    let got = client.get("k/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(
        (got.count(), got.kvs()[0].value(), got.kvs()[0].version()),
        (1, b"uno".as_slice(), 2)
    );
    assert_eq!(got.kvs()[0].lease(), lease);

    let txn = Txn::new()
        .when([Compare::version("k/1", CompareOp::Equal, 2)])
        .and_then([TxnOp::put("k/2", "two", None), TxnOp::get("k/1", None)])
        .or_else([TxnOp::delete("k/1", None)]);
    let answered = client.txn(txn).await.unwrap();
    assert!(answered.succeeded());
    assert_eq!(answered.op_responses().len(), 2);

    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 300);
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(
        left.granted_ttl() == 300 && left.ttl() <= 300 && left.ttl() > 290,
        "{left:?}"
    );
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(client.get("k/1", None).await.unwrap().count(), 0);
    let gone = client
        .delete("k/", Some(DeleteOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(gone.deleted(), 1);

    let mut seen = Vec::new();
    while seen.len() < 5 {
        let answer = watch.message().await.unwrap().unwrap();
        for event in answer.events() {
            let kv = event.kv().unwrap();
            seen.push(format!("{:?} {}", event.event_type(), kv.key_str().unwrap()));
        }
    }
    assert_eq!(seen, ["Put k/1", "Put k/1", "Put k/2", "Delete k/1", "Delete k/2"]);
}
