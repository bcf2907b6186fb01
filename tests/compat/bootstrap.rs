//! How a member finds its place, held against real members of etcd: the same flags make the same ids, their answers on
//! the peer port are understood, and what etcd refuses to start with is refused with its words.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use quorate_kit::wait::until;
use quorate_kit::{Binary, Config, Node, http, ports};
use quorate_server::bootstrap::addresses::system_resolve;
use quorate_server::bootstrap::data_dir::Origin;
use quorate_server::bootstrap::peers::http::HttpPeers;
use quorate_server::bootstrap::{self, Error, Prepared, Start, existing, initial_cluster};
use quorate_server::config;
use quorate_server::http::Membership;
use quorate_server::peer::dial::Dialer;
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// Members of etcd that found a cluster, not started yet.
fn founders(dir: &Path, size: usize) -> Vec<Config> {
    let config = |index| {
        let mut config = Config::new(Binary::oracle(), dir);
        config.name = format!("m{index}");
        config
    };
    let mut configs: Vec<_> = (0..size).map(config).collect();
    let list = listed(&configs);
    configs
        .iter_mut()
        .for_each(|config| config.initial_cluster = list.clone());
    configs
}

fn listed(configs: &[Config]) -> String {
    let pairs = configs
        .iter()
        .map(|config| format!("{}={}", config.name, config.peer_url()));
    pairs.collect::<Vec<_>>().join(",")
}

fn running(dir: &Path, size: usize) -> Vec<Node> {
    let mut nodes: Vec<_> = founders(dir, size).into_iter().map(Node::launch).collect();
    nodes.iter_mut().for_each(Node::wait_ready);
    let serve = || {
        nodes
            .iter()
            .all(|node| members(&node.config).is_some_and(all_have_served))
    };
    until("all members to know of all that they serve", LIMIT, || {
        serve().then_some(())
    });
    nodes
}

fn all_have_served(told: Told) -> bool {
    told.members.iter().all(|member| !member["clientURLs"].is_null())
}

/// What an etcd says on its peer port, by a client that is not ours.
struct Told {
    cluster: String,
    members: Vec<Value>,
}

fn members(config: &Config) -> Option<Told> {
    let address = SocketAddr::from(([127, 0, 0, 1], config.peer_port));
    let answer = http::get(address, "/members")
        .ok()
        .filter(|answer| answer.status == 200)?;
    Some(Told {
        cluster: answer.header("x-etcd-cluster-id")?.to_owned(),
        members: serde_json::from_slice(&answer.body).ok()?,
    })
}

/// Ours, from the very flags that an etcd gets.
fn settings(config: &Config, data_dir: &Path) -> config::Config {
    let mut args = vec!["quorate".to_owned()];
    args.extend(config.arguments());
    args.push(format!("--data-dir={}", data_dir.display()));
    let loaded = config::load(args.into_iter().map(Into::into), std::iter::empty());
    loaded.unwrap_or_else(|exit| panic!("{exit:?}")).config
}

fn dialer() -> Dialer {
    let config = config::load(["quorate".into()].into_iter(), std::iter::empty())
        .unwrap()
        .config;
    Dialer::new(&config).unwrap()
}

fn peers() -> HttpPeers {
    HttpPeers::new(tokio::runtime::Handle::current(), dialer())
}

/// Starts as far as it goes without data, in a directory that a refusal must leave alone.
async fn prepare(config: &Config) -> (Result<Prepared, Error>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (settings, peers) = (settings(config, &dir.path().join("data")), peers());
    let prepare = move || bootstrap::prepare(&settings, &system_resolve, &peers, Duration::ZERO);
    let prepared = tokio::task::spawn_blocking(prepare).await.unwrap();
    if prepared.is_err() {
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "a refusal leaves no trace"
        );
    }
    (prepared, dir)
}

async fn find_place(config: &Config) -> Result<existing::Place, existing::Error> {
    let (settings, peers) = (settings(config, Path::new("nowhere")), peers());
    let find = move || existing::find_place(&settings, &system_resolve, &peers, Duration::ZERO);
    tokio::task::spawn_blocking(find).await.unwrap()
}

/// Why an etcd with an empty directory does not start.
fn etcds_refusal(config: &Config, dir: &Path) -> String {
    let mut config = config.clone();
    config
        .extra
        .push(format!("--data-dir={}", dir.join("refused").display()));
    config.dir = dir.join("refusals");
    let mut node = Node::launch(config);
    node.wait_end(LIMIT);
    let log = node.log();
    let fatal = log
        .lines()
        .find(|line| line.contains("discovery failed"))
        .unwrap_or_else(|| panic!("{log}"));
    let fatal: Value = serde_json::from_str(fatal).unwrap();
    fatal["error"].as_str().unwrap().to_owned()
}

/// 3.4 prints members in any order, later versions by id.
fn assert_same_words(ours: &str, etcds: &str) {
    let words = |text: &str| {
        let mut words: Vec<_> = text.split([' ', '[', ']']).map(str::to_owned).collect();
        words.sort();
        words
    };
    let reason = |text: &str| text.split("RemovedMemberIDs").nth(1).map(str::to_owned);
    assert_eq!(reason(ours), reason(etcds));
    assert_eq!(words(ours), words(etcds), "\n{ours}\n{etcds}");
}

/// Compares ids, URLs, names and kinds. The other side's ids are decimal numbers.
fn assert_same(ours: &Membership, etcds: &Told) {
    assert_eq!(ours.cluster.to_string(), etcds.cluster);
    let ours = ours.members.iter().map(|member| {
        let mut shown = serde_json::json!({ "id": member.id, "peerURLs": member.peer_ur_ls });
        if !member.name.is_empty() {
            shown["name"] = member.name.clone().into();
        }
        if member.is_learner {
            shown["isLearner"] = true.into();
        }
        if !member.client_ur_ls.is_empty() {
            shown["clientURLs"] = member.client_ur_ls.clone().into();
        }
        shown
    });
    assert_eq!(ours.collect::<Vec<_>>(), etcds.members);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founding_members_have_etcds_ids() {
    for size in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let nodes = running(dir.path(), size);
        for node in &nodes {
            let config = settings(&node.config, Path::new("nowhere"));
            let founding = initial_cluster::found(&config, &system_resolve, Duration::ZERO).unwrap();
            let mut etcds = members(&node.config).unwrap();
            let ours = etcds
                .members
                .iter()
                .find(|member| member["name"] == node.config.name.as_str());
            assert_eq!(ours.unwrap()["id"], founding.member_id);
            // Who founds does not know where clients will be served.
            for member in &mut etcds.members {
                member.as_object_mut().unwrap().remove("clientURLs");
            }
            assert_same(&founding.membership(), &etcds);
        }
    }
}

/// The first of three is there, waits for the others, and tells whom it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_start_later_found_the_same_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let configs = founders(dir.path(), 3);
    let first = Node::launch(configs[0].clone());
    let etcds = until("the first member to tell who founds", LIMIT, || members(&first.config));
    for config in &configs[1..] {
        let (prepared, _dir) = prepare(config).await;
        let prepared = prepared.unwrap();
        assert_eq!((prepared.start, prepared.identity.boot), (Start::Found, 1));
        let Origin::Founded(members) = prepared.origin else {
            panic!()
        };
        let cluster = prepared.identity.cluster;
        assert_same(&Membership { cluster, members }, &etcds);
    }
    let mut other = configs[1].clone();
    other.extra.push("--initial-cluster-token=another".to_owned());
    let (refused, _dir) = prepare(&other).await;
    let text = refused.unwrap_err().to_string();
    let wanted = format!("{} is a member of cluster {}, ", first.config.peer_url(), etcds.cluster);
    assert!(text.starts_with(&wanted), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_served_and_lost_its_disk_does_not_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = running(dir.path(), 3);
    nodes[0].kill();
    let lost = nodes[0].config.clone();
    let (refused, _dir) = prepare(&lost).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.ends_with(" has already been bootstrapped"), "{text}");
    assert_eq!(text, etcds_refusal(&lost, dir.path()));
}

/// A member that joins these, by flags.
fn joining(nodes: &[Node], dir: &Path) -> Config {
    let mut joining = Config::new(Binary::oracle(), dir);
    joining.name = "new".to_owned();
    joining.initial_cluster_state = "existing".to_owned();
    let mut all: Vec<_> = nodes.iter().map(|node| node.config.clone()).collect();
    all.push(joining.clone());
    joining.initial_cluster = listed(&all);
    joining
}

/// The place is found in what etcd tells, and it can't be taken: what etcd's members speak among themselves is not ours.
async fn assert_place(joining: &Config, nodes: &[Node], id: u64, is_learner: bool) {
    let place = find_place(joining).await.unwrap();
    assert_eq!(place.member.0, id);
    assert_same(&place.told, &members(&nodes[0].config).unwrap());
    let us = place.told.members.iter().find(|member| member.id == id).unwrap();
    assert_eq!(us.is_learner, is_learner);
    let (refused, _dir) = prepare(joining).await;
    let text = refused.unwrap_err().to_string();
    let wanted = "incompatible with current running cluster (";
    assert!(
        text.starts_with(wanted) && text.contains("is a member of etcd"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_member_takes_its_ids_from_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = running(dir.path(), 1);
    let joining = joining(&nodes, dir.path());
    let id = add(&nodes, &joining.peer_url(), &[]);
    assert_place(&joining, &nodes, id, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_does_not_match_the_cluster_is_refused_in_etcds_words() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = running(dir.path(), 3);
    let joining = joining(&nodes, dir.path());

    // Not added yet: etcd names what the cluster has, and we both sides.
    let (refused, _dir) = prepare(&joining).await;
    let text = refused.unwrap_err().to_string();
    let both = " (the cluster has 3, --initial-cluster names 4)";
    assert_same_words(text.strip_suffix(both).unwrap(), &etcds_refusal(&joining, dir.path()));

    // Added under another URL, then under its own.
    let id = add(&nodes, &format!("http://127.0.0.1:{}", ports::free()), &["--learner"]);
    let (refused, _dir) = prepare(&joining).await;
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("PeerURLs: no match found for existing member ("),
        "{text}"
    );
    assert_same_words(&text, &etcds_refusal(&joining, dir.path()));
    let url = joining.peer_url();
    let update = ["member", "update", &format!("{id:x}"), &format!("--peer-urls={url}")];
    nodes[0].etcdctl().ok(&update);
    let has_it = |told: Told| told.members.iter().any(|member| member["peerURLs"][0] == url.as_str());
    let all = || nodes.iter().all(|node| members(&node.config).is_some_and(has_it));
    until("all members to know the new URL", LIMIT, || all().then_some(()));
    // 3.4 forgets with an update that the member is a learner.
    assert_place(&joining, &nodes, id, !Binary::oracle().is_34()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_answers_is_told_as_etcd_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut joining = founders(dir.path(), 2).remove(0);
    joining.initial_cluster_state = "existing".to_owned();
    let (refused, _dir) = prepare(&joining).await;
    assert_eq!(refused.unwrap_err().to_string(), etcds_refusal(&joining, dir.path()));
}

/// Adds a member, and waits until all know of it. etcd refuses that for some seconds after its members have met.
fn add(nodes: &[Node], url: &str, more: &[&str]) -> u64 {
    let peer_urls = format!("--peer-urls={url}");
    let arguments = [&["member", "add", "new", &peer_urls, "-w", "json"], more].concat();
    let ctl = nodes[0].etcdctl();
    let added = until("the cluster to take a member", LIMIT, || {
        let said = ctl.call(&arguments);
        said.ok.then_some(said.out)
    });
    let added: Value = serde_json::from_str(&added).unwrap_or_else(|error| panic!("{error}: {added}"));
    let knows = |told: Told| told.members.len() == nodes.len() + 1;
    let all = || nodes.iter().all(|node| members(&node.config).is_some_and(knows));
    until("all members to have heard of it", LIMIT, || all().then_some(()));
    added["member"]["ID"].as_u64().unwrap()
}
