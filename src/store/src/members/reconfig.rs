//! Which changes of membership a cluster survives, by etcd's rules. Each is a question to the members table; some also
//! ask who is connected.
//!
//! A voter that was added counts for the quorum in all of them, whether or not its process has ever started; it has
//! *started* once it has published its name. Learners never count.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_api::proto::etcdserverpb::Member;

/// A connection counts for a quorum once it has been up this long.
pub const STEADY: Duration = Duration::from_secs(5);

pub fn is_started(member: &Member) -> bool {
    !member.name.is_empty()
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Voters, and how many of them have started.
fn count<'m>(members: impl Iterator<Item = &'m Member>) -> (usize, usize) {
    members
        .filter(|member| !member.is_learner)
        .fold((0, 0), |(voters, started), member| {
            (voters + 1, started + usize::from(is_started(member)))
        })
}

/// With one voter more, those that have started are still a majority. The only member of a cluster may always add one,
/// or there would be no clusters.
pub fn may_add_voter<'m>(members: impl Iterator<Item = &'m Member>) -> bool {
    let (voters, started) = count(members);
    (voters, started) == (1, 1) || started >= majority(voters + 1)
}

/// Without the member, the voters that have started are a majority. A learner may always go.
pub fn may_remove<'m>(members: impl Iterator<Item = &'m Member> + Clone, id: u64) -> bool {
    if members.clone().any(|member| member.id == id && member.is_learner) {
        return true;
    }
    let (voters, started) = count(members.filter(|member| member.id != id));
    started >= majority(voters)
}

/// With one learner as a voter more, which counts as started, those that have are a majority.
pub fn may_promote<'m>(members: impl Iterator<Item = &'m Member>) -> bool {
    let (voters, started) = count(members);
    started + 1 >= majority(voters + 1)
}

/// Without the member nothing could ever be decided again: no voter would be left, or none of those that have started.
pub fn is_end<'m>(members: impl Iterator<Item = &'m Member> + Clone, id: u64) -> bool {
    let before = count(members.clone());
    let after = count(members.filter(|member| member.id != id));
    (before.0 > 0 && after.0 == 0) || (before.1 > 0 && after.1 == 0)
}

/// A member more, voter or learner, taken to be out of reach: those that have been connected for [`STEADY`], this one
/// included, are a majority all the same.
pub fn is_safe_to_add(members: &[Member], steady: &BTreeSet<u64>) -> bool {
    let voters = voters(members);
    voters.len() == 1 || connected(&voters, steady) >= majority(voters.len() + 1)
}

/// Once the member is gone, the quorum does not hang on every voter that has been connected for [`STEADY`], this one
/// included. A learner may always go, and so may who is not connected at the moment: neither carries anything. Of
/// itself (`own`) a member knows that it is.
pub fn is_safe_to_remove(
    members: &[Member],
    id: u64,
    own: u64,
    connected_now: &BTreeSet<u64>,
    steady: &BTreeSet<u64>,
) -> bool {
    let is_learner = members.iter().any(|member| member.id == id && member.is_learner);
    if is_learner || (id != own && !connected_now.contains(&id)) {
        return true;
    }
    let voters = voters(members);
    connected(&voters, steady) > 1 + voters.len().saturating_sub(1) / 2
}

fn voters(members: &[Member]) -> Vec<u64> {
    let voters = members.iter().filter(|member| !member.is_learner);
    voters.map(|member| member.id).collect()
}

fn connected(voters: &[u64], to: &BTreeSet<u64>) -> usize {
    voters.iter().filter(|id| to.contains(id)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members 1, 2, …: `S` a voter that has started, `v` one that has not, `L` and `l` learners.
    fn members(kinds: &str) -> Vec<Member> {
        let member = |(kind, id): (char, u64)| Member {
            id,
            name: if kind.is_uppercase() {
                format!("m{id}")
            } else {
                String::new()
            },
            is_learner: kind.eq_ignore_ascii_case(&'l'),
            ..Default::default()
        };
        kinds.chars().zip(1..).map(member).collect()
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_voter_is_added_while_the_started_ones_stay_a_majority() {
        for (kinds, may) in [
            ("S", true), // the exception
            ("v", false),
            ("Sv", false), // 1 < 3/2 + 1
            ("SS", true),
            ("SSv", false), // 2 < 4/2 + 1
            ("SSS", true),
            ("SSSv", true), // 3 ≥ 5/2 + 1
            ("SSSvv", false),
            ("SSSSv", true),
            ("SLl", true), // learners don't count
            ("SvL", false),
        ] {
            assert_eq!(may_add_voter(members(kinds).iter()), may, "{kinds}");
        }
    }

    #[test]
    fn a_voter_is_removed_while_the_started_ones_stay_a_majority() {
        for (kinds, id, may) in [
            ("S", 1, false), // 0 < 0/2 + 1
            ("SS", 1, true),
            ("Sv", 2, true),
            ("Sv", 1, false), // 0 < 1/2 + 1
            ("SSv", 3, true),
            ("SSv", 1, false), // 1 < 2/2 + 1
            ("SSS", 2, true),
            ("SSSvv", 1, false),
            ("SSSvv", 5, true),
            ("SvL", 3, true), // a learner may always go
            ("vl", 2, true),
            // Nobody is removed, and what is there is looked at all the same.
            ("Sv", 9, false),
            ("S", 9, true),
        ] {
            assert_eq!(may_remove(members(kinds).iter(), id), may, "{kinds} without {id}");
        }
    }

    #[test]
    fn a_learner_is_promoted_while_it_and_the_started_voters_are_a_majority() {
        for (kinds, may) in [
            ("Sl", true),
            ("vl", false), // 1 < 2/2 + 1
            ("SvL", true), // 2 ≥ 3/2 + 1
            ("vvL", false),
            ("SvvL", false), // 2 < 4/2 + 1
            ("SSvL", true),
            ("SSvvL", true),
            ("SvvvL", false),
        ] {
            assert_eq!(may_promote(members(kinds).iter()), may, "{kinds}");
        }
    }

    #[test]
    fn the_last_voter_is_the_end_of_a_cluster() {
        for (kinds, id, end) in [
            ("S", 1, true),
            ("v", 1, true),
            ("SL", 1, true),
            ("Sv", 1, true), // what is left has never started
            ("Sv", 2, false),
            ("vv", 1, false), // nobody has, as yet
            ("SS", 1, false),
            ("SL", 2, false),
            ("S", 9, false),
        ] {
            assert_eq!(is_end(members(kinds).iter(), id), end, "{kinds} without {id}");
        }
    }

    #[test]
    fn a_member_is_added_while_those_long_connected_stay_a_majority() {
        for (kinds, steady, safe) in [
            ("S", &[][..], true), // size 1 is not asked
            ("SL", &[1], true),
            ("SS", &[1], false), // 1 < 3/2 + 1
            ("SS", &[1, 2], true),
            ("SSS", &[1, 2], false), // 2 < 4/2 + 1
            ("SSS", &[1, 2, 3], true),
            ("SSSS", &[1, 2, 3], true), // 3 ≥ 5/2 + 1
            ("SSSSS", &[1, 2, 3], false),
            ("SSLL", &[1, 3, 4], false), // learners don't count
            ("Sv", &[1, 2], true),       // connected is not started
        ] {
            assert_eq!(
                is_safe_to_add(&members(kinds), &set(steady)),
                safe,
                "{kinds} {steady:?}"
            );
        }
    }

    #[test]
    fn a_connected_voter_is_removed_while_those_left_carry_the_quorum() {
        for (kinds, id, now, steady, safe) in [
            ("SSS", 2, &[1, 2, 3][..], &[1, 2, 3][..], true), // 2 ≥ 1 + 2/2
            ("SSS", 2, &[1, 2], &[1, 2], false),              // 1 < 2
            ("SSS", 3, &[1, 2], &[1, 2], true),               // not connected
            ("SSS", 3, &[1, 2, 3], &[1, 2], false),           // connected, and not for long
            ("SSS", 1, &[2, 3], &[2, 3], false),              // itself never counts as disconnected
            ("SSSSS", 5, &[1, 2, 3, 5], &[1, 2, 3, 5], true), // 3 ≥ 1 + 4/2
            ("SSSSS", 5, &[1, 2, 5], &[1, 2, 5], false),
            ("SS", 2, &[1, 2], &[1, 2], true), // 1 ≥ 1 + 1/2
            ("SS", 2, &[1, 2], &[1], false),
            ("SSL", 3, &[1, 3], &[1], true), // a learner
            ("S", 9, &[1], &[1], true),      // nobody's loss
        ] {
            let answer = is_safe_to_remove(&members(kinds), id, 1, &set(now), &set(steady));
            assert_eq!(answer, safe, "{kinds} without {id}, {now:?}, {steady:?}");
        }
    }
}
