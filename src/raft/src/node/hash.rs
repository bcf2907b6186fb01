//! Hashes of what members hold, to find out whether they hold the same.

use super::{Node, Parts};
use crate::peer::{Answer, Lane, PeerError, Request};
use crate::runtime;
use quorate_api::Error as Refused;
use quorate_api::proto::quorate::peer::{HashAnswer, HashAsk, hash_answer::State};
use quorate_store::Error;

impl Node {
    /// What another member has as the hash of everything up to `revision`. The caller sets the time limit.
    pub async fn hash_of(&self, member: u64, revision: i64) -> Result<HashAnswer, PeerError> {
        let ask = Request::Hash(HashAsk { revision });
        match self.parts.network.call(member, Lane::Control, ask).await {
            Ok(Ok(Answer::Hash(answer))) => Ok(answer),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(PeerError::Lost { to: member }),
        }
    }
}

impl Parts {
    /// This member's own, for a peer.
    pub(crate) async fn hash(&self, revision: i64) -> HashAnswer {
        let turn = self.hashing.clone().lock_owned().await;
        let store = self.store.clone();
        let state = |state: State| HashAnswer {
            state: state as i32,
            ..HashAnswer::default()
        };
        // The turn goes along: when the peer is gone, the work still takes its place.
        let work = move || {
            let _turn = turn;
            store.hash_kv(revision)
        };
        match runtime::spawn_blocking(work).await {
            Ok(Ok(hashed)) => HashAnswer {
                state: State::Hashed as i32,
                hash: hashed.hash,
                compacted: hashed.compacted,
            },
            Ok(Err(Error::Refused(Refused::FutureRevision))) => state(State::Future),
            Ok(Err(Error::Refused(Refused::Compacted))) => state(State::Compacted),
            Ok(Err(_)) | Err(_) => state(State::Failed),
        }
    }
}
