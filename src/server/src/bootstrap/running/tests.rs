use super::super::initial_cluster::found;
use super::super::scripted::{Scripted, config, member, nowhere};
use super::*;

const A: &str = "http://10.0.0.1:2380";
const B: &str = "http://10.0.0.2:2380";
const C: &str = "http://10.0.0.3:2380";

fn founding() -> InitialCluster {
    let args = [
        "--name=a",
        &format!("--initial-advertise-peer-urls={A}"),
        &format!("--initial-cluster=a={A},b={B},c={C}"),
    ];
    found(&config(&args), &nowhere, Duration::ZERO).unwrap()
}

/// All three, of whom those have served whose URL is in `served`.
fn list(founding: &InitialCluster, served: &[&str]) -> Vec<String> {
    let of = |founder: &super::super::initial_cluster::FoundingMember| {
        let url = founder.peer_urls[0].raw.as_str();
        member(founder.id, &[url], served.contains(&url))
    };
    founding.members.iter().map(of).collect()
}

#[test]
fn silence_keeps_nobody_from_founding() {
    let peers = Scripted::default();
    check(&founding(), &peers).unwrap();
    let asked: Vec<_> = [B, C].map(|url| (url.to_owned(), peers::MEMBERS)).into();
    assert_eq!(*peers.asked.borrow(), asked, "the others, and not itself");
}

#[test]
fn members_that_found_with_us_do_not_count() {
    let founding = founding();
    let peers = Scripted::default()
        .members(B, founding.cluster_id, &list(&founding, &[]))
        .members(C, founding.cluster_id, &list(&founding, &[B, C]));
    check(&founding, &peers).unwrap();
}

/// What one member knows is enough, however many don't and whichever answers first.
#[test]
fn a_member_that_has_served_does_not_found_again() {
    let founding = founding();
    for (first, second) in [(B, C), (C, B)] {
        let peers = Scripted::default()
            .members(first, founding.cluster_id, &list(&founding, &[]))
            .members(second, founding.cluster_id, &list(&founding, &[A, B, C]));
        let refused = check(&founding, &peers).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("member {:x} has already been bootstrapped", founding.member_id)
        );
    }
    // also where the cluster was founded by others, as etcd has it
    let peers = Scripted::default().members(B, 0xabc, &list(&founding, &[A, B, C]));
    assert!(matches!(check(&founding, &peers), Err(Error::AlreadyBootstrapped(_))));
}

#[test]
fn other_settings_and_another_cluster_are_refused_with_both_ids() {
    let founding = founding();
    let peers = Scripted::default()
        .members(C, 0xdef, &[member(8, &[C], false)])
        .members(B, 0xabc, &[member(7, &[B], true)]);
    let refused = check(&founding, &peers).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "{B} is a member of cluster abc, and these settings found cluster {:x}: --initial-cluster and \
             --initial-cluster-token must be the same on all founding members",
            founding.cluster_id
        )
    );
}

/// Three of five that were removed and wiped must not find a majority of the old five among themselves.
#[test]
fn a_removed_member_does_not_found_again() {
    let founding = founding();
    let others: Vec<_> = list(&founding, &[B, C])
        .into_iter()
        .filter(|member| !member.contains(A))
        .collect();
    let peers = Scripted::default().members(B, founding.cluster_id, &others);
    let refused = check(&founding, &peers).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "member {:x} was removed from cluster {:x}, says {B}: add it again, and start it with \
             --initial-cluster-state=existing",
            founding.member_id, founding.cluster_id
        )
    );
}
