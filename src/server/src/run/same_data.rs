//! The feature gate `InitialCorruptCheck`: a member that was started before compares what it holds with the others, and
//! serves nobody if it is not the same. Texts are etcd's.

use crate::member::Member;
use anyhow::{Context, bail};
use futures_util::future::join_all;
use quorate_api::MemberId;
use quorate_api::proto::quorate::peer::{HashAnswer, hash_answer::State};
use quorate_raft::peer::PeerError;
use quorate_store::HashKv;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

/// Links come up while this is running: one that is not there yet is tried again after this time.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks everybody else once. Members that can't be reached within an election timeout or don't answer in time keep
/// nobody from starting; they compare themselves when they start.
pub(super) async fn check(member: &Arc<Member>) -> anyhow::Result<()> {
    let id = member.id;
    let patience = member.limits.request_timeout;
    info!("local-member-id" = %id, timeout = ?patience, "starting initial corruption check");
    let store = member.store.clone();
    let own = tokio::task::spawn_blocking(move || store.hash_kv(0)).await;
    let own = own
        .map_err(anyhow::Error::new)
        .and_then(|hashed| Ok(hashed?))
        .with_context(|| format!("{id} failed to fetch hash"))?;
    let others = member.store.members().into_iter().filter(|other| other.id != id.0);
    let asked = others.map(|other| async move {
        let answer = timeout(patience, ask(member, other.id, own.at.0)).await;
        (MemberId(other.id), answer.ok())
    });
    let mut differs = false;
    for (peer, answer) in join_all(asked).await {
        match answer {
            Some(Ok(answer)) => differs |= is_other(id, peer, &own, &answer),
            Some(Err(error)) => warn!("remote-peer-id" = %peer, %error, "failed hash kv request"),
            None => warn!("remote-peer-id" = %peer, ?patience, "no answer to a hash kv request"),
        }
    }
    if differs {
        let reason = format!("{id} found data inconsistency with peers");
        error!(error = %reason, "checkInitialHashKV failed");
        bail!(reason);
    }
    info!("local-member-id" = %id, "initial corruption checking passed; no corruption");
    Ok(())
}

async fn ask(member: &Member, peer: u64, revision: i64) -> Result<HashAnswer, PeerError> {
    let begun = Instant::now();
    loop {
        match member.node.hash_of(peer, revision).await {
            Err(PeerError::Unreachable { .. }) if begun.elapsed() < member.limits.election_timeout => {
                sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Whether a peer certainly holds something else.
fn is_other(id: MemberId, peer: MemberId, own: &HashKv, answer: &HashAnswer) -> bool {
    let told = match answer.state() {
        State::Hashed if answer.hash == own.hash => return false,
        State::Hashed if answer.compacted == own.compacted => "found different hash values from remote peer",
        State::Hashed => "found different compact revision values from remote peer",
        State::Future => "cannot fetch hash from slow remote peer",
        State::Compacted => "cannot fetch hash from remote peer; local member is behind",
        State::Failed => "the remote peer can't read what it holds",
    };
    warn!(
        "local-member-id" = %id,
        "local-member-revision" = own.at.0,
        "local-member-compact-revision" = own.compacted,
        "local-member-hash" = own.hash,
        "remote-peer-id" = %peer,
        "remote-peer-compact-revision" = answer.compacted,
        "remote-peer-hash" = answer.hash,
        "{told}"
    );
    answer.state() == State::Hashed && answer.compacted == own.compacted
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::Revision;

    #[test]
    fn only_what_can_be_compared_is_another() {
        let own = HashKv {
            hash: 7,
            at: Revision(10),
            revision: Revision(12),
            compacted: 3,
        };
        let is_other = |state: State, hash, compacted| {
            let state = state as i32;
            let answer = HashAnswer { state, hash, compacted };
            is_other(MemberId(1), MemberId(2), &own, &answer)
        };
        assert!(!is_other(State::Hashed, 7, 3));
        assert!(is_other(State::Hashed, 8, 3));
        assert!(!is_other(State::Hashed, 8, 4), "more is left out");
        for state in [State::Future, State::Compacted, State::Failed] {
            assert!(!is_other(state, 0, 3));
        }
    }
}
