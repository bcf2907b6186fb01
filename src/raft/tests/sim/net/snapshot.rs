//! A snapshot on its way: on a connection of its own, in small pieces, and not always to its end.

use super::pipe::{Receiver, Sender, pipe};
use super::{Net, PATIENCE};
use bytes::Bytes;
use quorate_api::proto::quorate::peer::{self as pb, Hello};
use quorate_raft::peer::service::Service;
use quorate_raft::peer::{PeerError, Reason, Snapshot, message};
use quorate_raft::state_machine::SnapshotData;
use quorate_raft::types::Vote;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const PIECE_BYTES: usize = 32 << 10;

enum Part {
    Head(pb::SnapshotHead),
    Piece(Bytes),
    End,
}

type Taken = Result<pb::Vote, pb::Refused>;

pub async fn send(net: Arc<Net>, hello: Hello, vote: Vote, snapshot: Snapshot) -> Result<Vote, PeerError> {
    let (from, to) = (hello.from, hello.to);
    let unreachable = |reason: &str| PeerError::Unreachable {
        to,
        reason: reason.to_owned(),
    };
    let SnapshotData::Image(image) = snapshot.snapshot else {
        return Err(unreachable("the snapshot is not this member's own"));
    };
    sleep(net.latency(from, to)).await;
    if !net.passes(from, to) || !net.passes(to, from) {
        sleep(PATIENCE).await;
        return Err(unreachable("nobody answers"));
    }
    let peer = net.endpoint(to).ok_or_else(|| unreachable("nobody is there"))?;
    let (mut parts, arriving) = pipe(&net, from, to);
    let (answering, mut answer) = pipe(&net, to, from);
    peer.process
        .spawn(receive(net.clone(), peer.service.clone(), arriving, answering));
    net.trace
        .note(format_args!("{from} sends {to} a snapshot: {}", snapshot.meta));
    parts.send(Part::Head(pb::SnapshotHead {
        hello: Some(hello),
        vote: Some(message::put_vote(&vote)),
        last: snapshot.meta.last_log_id.as_ref().map(message::put_log_id),
    }));
    let reset = net.resets(from, to);
    let cut_after = net.dice.chance(net.snapshots_cut).then(|| net.dice.below(12));
    let sending = async {
        let mut sent = 0;
        for piece in image.read() {
            let mut piece = piece.map_err(|error| unreachable(&error.to_string()))?;
            while !piece.is_empty() {
                if cut_after == Some(sent) {
                    return Err(PeerError::Lost { to });
                }
                sent += 1;
                parts.send(Part::Piece(piece.split_to(piece.len().min(PIECE_BYTES))));
                sleep(Duration::from_millis(1)).await;
            }
        }
        parts.send(Part::End);
        Ok(())
    };
    let silent = async {
        loop {
            sleep(PATIENCE).await;
            if !net.passes(from, to) || !net.passes(to, from) {
                return;
            }
        }
    };
    let mut sending = std::pin::pin!(sending);
    let mut silent = std::pin::pin!(silent);
    let mut resets = std::pin::pin!(reset.notified());
    let mut all_sent = false;
    let taken = loop {
        tokio::select! {
            biased;
            () = &mut resets => return Err(PeerError::Lost { to }),
            taken = answer.next() => break taken.ok_or(PeerError::Lost { to })?,
            sent = &mut sending, if !all_sent => {
                sent?;
                all_sent = true;
            }
            () = &mut silent => return Err(PeerError::Lost { to }),
        }
    };
    match taken {
        Ok(vote) => message::get_vote(Some(vote)).map_err(|_| PeerError::Lost { to }),
        Err(refused) => {
            let (reason, text) = (refused.reason(), refused.text);
            net.trace.note(format_args!("{to} does not take the snapshot: {text}"));
            if reason == Reason::Malformed && !text.starts_with("cut off") {
                net.trace
                    .fail(format_args!("{to} calls {from}'s snapshot malformed: {text}"));
            }
            Err(PeerError::Refused { to, reason, text })
        }
    }
}

async fn receive(net: Arc<Net>, service: Service, parts: Receiver<Part>, mut answer: Sender<Taken>) {
    let taken = take_in(service, parts).await;
    if taken.is_ok() {
        net.state.lock().snapshots += 1;
    }
    answer.send(taken);
}

async fn take_in(service: Service, mut parts: Receiver<Part>) -> Taken {
    let refused = |reason: Reason, text: String| pb::Refused {
        reason: reason as i32,
        text,
    };
    let Some(Part::Head(head)) = parts.next().await else {
        return Err(refused(Reason::Malformed, "cut off".to_owned()));
    };
    let arrival = service.snapshot(head)?;
    let another = || refused(Reason::NotReady, "another is being taken in".to_owned());
    let mut incoming = arrival.begin()?.ok_or_else(another)?;
    let failed = |error: quorate_store::Error| refused(Reason::NotReady, format!("not taken in: {error}"));
    loop {
        match parts.next().await {
            Some(Part::Piece(piece)) => incoming.push(piece).map_err(failed)?,
            Some(Part::End) => break,
            Some(Part::Head(_)) | None => return Err(refused(Reason::Malformed, "cut off".to_owned())),
        }
    }
    let received = incoming.finish().map_err(failed)?;
    arrival.install(received).await
}
