//! A leader that most voters can't reach gives leadership to one that can be reached.
//!
//! Every member dials the links on which it asks. So a leader whose peer port is blocked, or whose certificate others
//! don't accept any more, is heard as before, and holds up everybody whose clients are with another member:
//!
//! ```text
//!   leader ── heartbeats, entries ──────────► followers     stands: the leader dials
//!   leader ◄──╳── forwards, read index ────── followers     does not: they dial
//! ```
//!
//! Only a majority that has been cut off for an election timeout counts, and only a voter that has links to a quorum
//! itself is a candidate: with fewer, as many would be cut off afterwards.

use super::Parts;
use crate::peer::{Answer, Lane, Request};
use futures_util::future::join_all;
use quorate_api::proto::quorate::peer::{Reach, ReachAnswer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, warn};

/// After an attempt: what keeps members apart may keep the next leader from others, and leadership should not wander.
const PAUSE: Duration = Duration::from_secs(30);

pub(super) async fn run(parts: Arc<Parts>) {
    let bound = parts.election;
    let mut looks = interval(bound / 2);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cut_off = CutOff::default();
    loop {
        looks.tick().await;
        let voters = parts.voters();
        if !parts.leads() || voters.len() < 2 {
            cut_off = CutOff::default();
            continue;
        }
        let answers = parts.ask_reach(&voters, bound / 2).await;
        let candidates = cut_off.candidates(voters.len(), &answers, bound);
        if candidates.is_empty() || !parts.leads() {
            continue;
        }
        warn!("most voters can't reach this member, which leads; giving leadership away");
        let given = timeout(bound * 2, parts.give_to(&candidates)).await;
        parts.proposer.hold(false);
        if given.is_err() {
            error!("most voters can't reach this member, which leads, and nobody takes over");
        }
        cut_off = CutOff::default();
        sleep(PAUSE).await;
    }
}

/// Since when voters that are heard have had no link to this member.
#[derive(Default)]
struct CutOff(BTreeMap<u64, Instant>);

impl CutOff {
    /// Takes in what voters have answered; who might lead instead, if most of all `voters` have been cut off for so long.
    fn candidates(&mut self, voters: usize, answers: &BTreeMap<u64, ReachAnswer>, bound: Duration) -> Vec<u64> {
        self.0
            .retain(|id, _| answers.get(id).is_some_and(|answer| !answer.asker));
        for (id, _) in answers.iter().filter(|(_, answer)| !answer.asker) {
            self.0.entry(*id).or_insert_with(Instant::now);
        }
        let long: Vec<u64> = self
            .0
            .iter()
            .filter_map(|(id, since)| (since.elapsed() >= bound).then_some(*id))
            .collect();
        if long.len() <= voters / 2 {
            return Vec::new();
        }
        let could_lead = |id: &u64| answers.get(id).is_some_and(|answer| answer.quorum);
        long.into_iter().filter(could_lead).collect()
    }
}

impl Parts {
    /// What the other voters say, as far as they answer in time.
    async fn ask_reach(&self, voters: &BTreeSet<u64>, patience: Duration) -> BTreeMap<u64, ReachAnswer> {
        let others = voters.iter().copied().filter(|id| *id != self.identity.member);
        let asked = others.map(|id| {
            let answer = self.network.call(id, Lane::Control, Request::Reach(Reach {}));
            async move {
                match timeout(patience, answer).await {
                    Ok(Ok(Ok(Answer::Reach(answer)))) => Some((id, answer)),
                    _ => None,
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Answers a leader.
    pub(crate) fn reach(&self, asker: u64) -> ReachAnswer {
        let mut connected = self.network.connected(Duration::ZERO);
        connected.insert(self.identity.member);
        let voters = self.voters();
        ReachAnswer {
            asker: connected.contains(&asker),
            quorum: voters.intersection(&connected).count() > voters.len() / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    fn answers<const N: usize>(all: [(u64, bool, bool); N]) -> BTreeMap<u64, ReachAnswer> {
        all.map(|(id, asker, quorum)| (id, ReachAnswer { asker, quorum }))
            .into()
    }

    #[tokio::test(start_paused = true)]
    async fn most_voters_must_be_cut_off_for_a_while() {
        let mut cut_off = CutOff::default();
        let both = answers([(2, false, true), (3, false, false)]);
        assert!(cut_off.candidates(3, &both, BOUND).is_empty());
        sleep(BOUND / 2).await;
        assert!(cut_off.candidates(3, &both, BOUND).is_empty());
        sleep(BOUND / 2).await;
        assert_eq!(cut_off.candidates(3, &both, BOUND), [2], "the other could not lead");
        assert!(cut_off.candidates(4, &both, BOUND).is_empty(), "half are not most");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_back_or_no_answer_begins_anew() {
        let mut cut_off = CutOff::default();
        let both = answers([(2, false, true), (3, false, true)]);
        for better in [
            answers([(2, false, true), (3, true, true)]),
            answers([(2, false, true)]),
        ] {
            cut_off.candidates(3, &both, BOUND);
            sleep(BOUND).await;
            assert!(cut_off.candidates(3, &better, BOUND).is_empty());
            assert!(cut_off.candidates(3, &both, BOUND).is_empty());
            sleep(BOUND).await;
            assert_eq!(cut_off.candidates(3, &both, BOUND), [2, 3]);
            cut_off = CutOff::default();
        }
    }
}
