//! A snapshot on its way in, on a connection of its own.
//!
//! One at a time, the last that came of the latest leader: whoever was sending one before may be cut off, and would
//! be waited for until it is certain that nothing comes any more.

use super::frames::{self, Reader};
use super::serve::{PeerPort, head, trailers};
use crate::metrics::peers::Peer;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::{self as pb, snapshot_part::Body};
use quorate_raft::peer::Reason;
use quorate_raft::peer::service::Arrival;
use quorate_runtime::bulk;
use quorate_store::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Pieces of a snapshot that wait to be written.
const PIECES: usize = 4;

/// A snapshot that does not come on for so long has failed.
const STALL: Duration = Duration::from_secs(30);

/// One that is replaced ends within this time, unless it has come to its end and is being checked.
const LET_GO: Duration = Duration::from_secs(5);
const LET_GO_POLL: Duration = Duration::from_millis(10);

/// Whose turn it is.
#[derive(Default)]
pub struct Receiving(Mutex<Option<(u64, CancellationToken)>>);

/// The right to take in a snapshot, until another takes it away.
struct Turn(CancellationToken);

impl Receiving {
    /// A leader of an earlier term than one whose snapshot is coming in has been replaced.
    fn begin(&self, term: u64) -> Result<Turn, pb::Refused> {
        let mut current = self.0.lock();
        let mine = CancellationToken::new();
        if let Some((other, turn)) = &*current {
            if !turn.is_cancelled() && *other > term {
                return Err(replaced());
            }
            turn.cancel();
        }
        *current = Some((term, mine.clone()));
        Ok(Turn(mine))
    }
}

impl Turn {
    async fn is_over(&mut self) {
        self.0.cancelled().await;
    }

    fn was_replaced(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Takes in a snapshot, and answers once it is installed.
pub(super) async fn receive(
    port: PeerPort,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
    from: Option<std::net::SocketAddr>,
) {
    let Ok(mut answers) = respond.send_response(head(), false) else {
        return;
    };
    let received = take_in(port, Reader::new(body)).await;
    let body = match received {
        Ok(vote) => pb::snapshot_answer::Body::Vote(vote),
        Err(refused) => {
            warn!(?from, reason = refused.text, "did not take in a snapshot");
            pb::snapshot_answer::Body::Refused(refused)
        }
    };
    let answer = frames::frame(&pb::SnapshotAnswer { body: Some(body) });
    if answers.send_data(answer, false).is_ok() {
        let _ = answers.send_trailers(trailers());
    }
}

async fn take_in(port: PeerPort, mut reader: Reader) -> Result<pb::Vote, pb::Refused> {
    let (arrival, peer) = match arrive(&port, &mut reader).await {
        Ok(arrived) => arrived,
        Err(refused) => {
            port.metrics.snapshot_refused();
            return Err(refused);
        }
    };
    let transfer = peer.receives_snapshot();
    let turn = port.receiving.begin(arrival.term());
    let taken = match turn {
        Ok(turn) => take_from(&peer, arrival, reader, turn).await,
        Err(refused) => Err(refused),
    };
    match &taken {
        Ok(_) => transfer.done(),
        Err(_) => peer.receive_failed(),
    }
    taken
}

/// Who sends it, and whether it is let in.
async fn arrive(port: &PeerPort, reader: &mut Reader) -> Result<(Arrival, Arc<Peer>), pb::Refused> {
    let Body::Head(head) = part(reader).await? else {
        return Err(malformed("a snapshot begins with its head".to_owned()));
    };
    let from = head.hello.as_ref().map_or(0, |hello| hello.from);
    let arrival = port.service()?.snapshot(head)?;
    Ok((arrival, port.metrics.peer(from)))
}

async fn take_from(peer: &Peer, arrival: Arrival, mut reader: Reader, mut turn: Turn) -> Result<pb::Vote, pb::Refused> {
    let begun = Instant::now();
    let mut incoming = begin(&arrival, &turn).await?;
    info!("applying snapshot: receiving from the leader");
    let (parts, mut queue) = mpsc::channel(PIECES);
    let writing = bulk::spawn("take snapshot", move || {
        while let Some(part) = queue.blocking_recv() {
            match part {
                Part::Piece(piece) => incoming.push(piece)?,
                Part::End => return incoming.finish().map(Some),
            }
        }
        Ok(None)
    });
    let mut bytes = 0;
    let whole = loop {
        let part = tokio::select! {
            biased;
            () = turn.is_over() => Err(replaced()),
            part = part(&mut reader) => part,
        };
        match part {
            Ok(Body::Piece(piece)) => {
                bytes += piece.len() as u64;
                peer.received(reader.count());
                if parts.send(Part::Piece(piece)).await.is_err() {
                    break Ok(()); // the writer says why
                }
            }
            Ok(Body::End(end)) if end == bytes => {
                let _ = parts.send(Part::End).await;
                break Ok(());
            }
            Ok(_) => break Err(malformed("the snapshot is not as long as was said".to_owned())),
            Err(refused) => break Err(refused),
        }
    };
    drop(parts);
    let written = writing.await;
    whole?;
    let received = match written {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => return Err(not_taken(&error)),
        Err(error) => return Err(not_taken(&error)),
    };
    let received = received.ok_or_else(replaced)?;
    peer.saved(begun.elapsed());
    let applying = peer.applies_snapshot();
    let vote = arrival.install(received).await?;
    drop(applying);
    info!(bytes, "applied snapshot");
    Ok(vote)
}

/// Waits until a snapshot that this one replaces has gone.
async fn begin(arrival: &Arrival, turn: &Turn) -> Result<Incoming, pb::Refused> {
    let deadline = Instant::now() + LET_GO;
    loop {
        // Makes a file.
        if let Some(incoming) = tokio::task::block_in_place(|| arrival.begin())? {
            return Ok(incoming);
        }
        if Instant::now() > deadline || turn.was_replaced() {
            return Err(replaced());
        }
        tokio::time::sleep(LET_GO_POLL).await;
    }
}

/// For the thread that writes.
enum Part {
    Piece(Bytes),
    End,
}

fn not_taken(error: &dyn std::fmt::Display) -> pb::Refused {
    pb::Refused {
        reason: Reason::NotReady as i32,
        text: format!("the snapshot could not be taken in: {error}"),
    }
}

fn replaced() -> pb::Refused {
    pb::Refused {
        reason: Reason::NotReady as i32,
        text: "another snapshot is being taken in".to_owned(),
    }
}

fn malformed(text: String) -> pb::Refused {
    pb::Refused {
        reason: Reason::Malformed as i32,
        text,
    }
}

async fn part(reader: &mut Reader) -> Result<Body, pb::Refused> {
    match tokio::time::timeout(STALL, reader.next::<pb::SnapshotPart>()).await {
        Err(_) => Err(malformed("the snapshot did not come on".to_owned())),
        Ok(None) => Err(malformed("the snapshot was cut off".to_owned())),
        Ok(Some(Err(error))) => Err(malformed(error.to_string())),
        Ok(Some(Ok(part))) => part.body.ok_or_else(|| malformed("a part without content".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_leader_has_its_turn() {
        let receiving = Receiving::default();
        let first = receiving.begin(3).unwrap();
        let again = receiving.begin(3).unwrap();
        assert!(first.was_replaced() && !again.was_replaced());
        assert!(receiving.begin(2).is_err(), "while a later leader's comes in");
        assert!(!again.was_replaced());
        let next = receiving.begin(4).unwrap();
        assert!(again.was_replaced());
        drop(next);
        assert!(receiving.begin(2).is_ok(), "nothing comes in");
    }
}
