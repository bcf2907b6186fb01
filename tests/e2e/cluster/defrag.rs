//! Defragmentation by etcdctl, while everybody works on.

use quorate_api::proto::etcdserverpb::{CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse};
use quorate_api::proto::grpc::health::v1::health_check_response::ServingStatus;
use quorate_api::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use quorate_kit::background::wait_for;
use quorate_kit::rpc::LIMIT;
use quorate_kit::{Cluster, Etcdctl, Load, Rpc, wait};

use super::{ask, members};
use crate::support::COMPACT;
use crate::turn;

/// Of each member: blocks that its file has, and what is in use of them.
fn sizes(cluster: &mut Cluster) -> Vec<(i64, i64)> {
    let members = cluster.members();
    let of = |member| {
        let status = cluster.status(member).unwrap();
        (status.db_size, status.db_size_in_use)
    };
    members.into_iter().map(of).collect()
}

/// D15: files get smaller one after the other, nobody waits for it, and a member that is killed in the middle or right
/// behind it starts with everything.
#[test]
fn members_are_defragmented_under_load() {
    let _turn = turn::shared();
    let mut cluster = members(3).start();
    let leader = cluster.wait_leader();
    let client = cluster.client_of(&[leader]);
    wait_for(async move {
        for number in 0..600 {
            let value = vec![b'a' + (number % 26) as u8; 100_000];
            client.put(format!("fill/{}", number % 20), value).await.unwrap();
        }
    });
    let revision = cluster.status(leader).unwrap().header.unwrap().revision;
    let load = Load::on(&cluster).clients(6).watchers(6).start();
    load.wait_acknowledged(50);
    let physical = true;
    let compact = CompactionRequest { revision, physical };
    let _: CompactionResponse = ask(&cluster[leader].rpc(), COMPACT, &compact).unwrap();
    wait::until("members to have compacted", super::millis(20_000), || {
        let small = |(_, in_use): &(i64, i64)| *in_use < 10 << 20;
        sizes(&mut cluster).iter().all(small).then_some(())
    });
    let before = sizes(&mut cluster);
    let urls: Vec<String> = cluster
        .members()
        .into_iter()
        .map(|member| cluster[member].config.client_url())
        .collect();
    let finished = |urls: &[String]| -> String {
        let line = |url: &String| format!("Finished defragmenting etcd member[{url}]\n");
        urls.iter().map(line).collect()
    };
    let ctl = Etcdctl::new(&urls.join(","));
    for _ in 0..3 {
        assert_eq!(ctl.ok(&["defrag"]), finished(&urls));
        load.wait_acknowledged(50);
    }
    for ((before, _), (after, _)) in before.iter().zip(sizes(&mut cluster)) {
        assert!(after < before / 2, "{after} bytes of {before}");
    }
    for member in cluster.members() {
        let own = ctl.with_endpoints(&urls[member]);
        std::thread::scope(|scope| {
            // Perhaps it has ended by then, and perhaps not.
            scope.spawn(|| own.call(&["defrag"]));
            load.wait_acknowledged(10 + 10 * member as u64);
            cluster[member].kill();
        });
        cluster[member].restart();
        load.wait_acknowledged(100);
    }
    load.finish().check();
    cluster.wait_equal();
}

/// What the health service says before, during and after a defragmentation. One that is over before it is told of is
/// followed by another.
async fn said_during_defrag(rpc: Rpc) -> Vec<ServingStatus> {
    let whole_server = HealthCheckRequest::default();
    let mut health = rpc.bidi("/grpc.health.v1.Health/Watch", &whole_server).await.unwrap();
    let first: HealthCheckResponse = health.next(LIMIT).await.unwrap().unwrap();
    let mut said = vec![first.status()];
    for _ in 0..20 {
        let defragment = DefragmentRequest {};
        let done = rpc.unary::<DefragmentResponse>("/etcdserverpb.Maintenance/Defragment", &defragment);
        done.await.unwrap();
        if let Ok(Some(next)) = health.next::<HealthCheckResponse>(super::millis(200)).await {
            said.push(next.status());
            let last: HealthCheckResponse = health.next(LIMIT).await.unwrap().unwrap();
            said.push(last.status());
            break;
        }
    }
    let now: HealthCheckResponse = rpc.unary("/grpc.health.v1.Health/Check", &whole_server).await.unwrap();
    assert_eq!(now.status(), ServingStatus::Serving);
    said
}

/// The feature gate `StopGRPCServiceOnDefrag`: clients that look at their servers' health go elsewhere meanwhile.
#[test]
fn health_service_tells_of_a_defragmentation_if_wanted() {
    use ServingStatus::{NotServing, Serving};
    let _turn = turn::shared();
    let gate = "--feature-gates=StopGRPCServiceOnDefrag";
    for (state, wanted) in [("true", &[Serving, NotServing, Serving][..]), ("false", &[Serving])] {
        let cluster = members(1).flag(&format!("{gate}={state}")).start();
        let client = cluster.client();
        wait_for(async move {
            for number in 0..100 {
                client.put(format!("{number}"), vec![b'v'; 100_000]).await.unwrap();
            }
        });
        assert_eq!(wait_for(said_during_defrag(cluster[0].rpc())), wanted, "{state}");
    }
}
