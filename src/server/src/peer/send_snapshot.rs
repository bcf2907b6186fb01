//! A snapshot on its way to a peer: on a connection of its own, read and sent as the peer takes it in, and no faster than
//! those can bear who serve meanwhile.

use super::dial::{Dialer, PeerStream};
use super::frames::{self, Reader};
use super::lane::{self, SNAPSHOT};
use crate::config::Url;
use crate::metrics::peers::Peer;
use bytes::Bytes;
use quorate_api::proto::quorate::peer::{self as pb, snapshot_answer, snapshot_part::Body};
use quorate_raft::peer::{PeerError, Snapshot, message};
use quorate_raft::state_machine::SnapshotData;
use quorate_raft::types::Vote;
use quorate_runtime::bulk;
use quorate_runtime::tls::Alpn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

/// Pieces read ahead. Each has about 256 KiB.
const READ_AHEAD: usize = 4;

/// Bytes a second. Faster, a transfer takes disks and processors from the writes of the moment.
const RATE: u32 = 256 << 20;

/// What the peer has held up is not made up for faster than this.
const BURST: Duration = Duration::from_millis(20);

/// A transfer that makes no progress for so long has failed.
const STALL: Duration = Duration::from_secs(30);

/// Once all is sent, the peer checks it, makes it durable and rebuilds its index.
const INSTALL: Duration = Duration::from_secs(600);

pub struct Sending {
    pub to: u64,
    pub hello: pb::Hello,
    pub dialer: Dialer,
    pub metrics: Arc<Peer>,
    pub urls: Vec<Url>,
}

impl Sending {
    /// Returns the peer's vote once it has installed the snapshot, or refused it for its own vote.
    pub async fn send(self, vote: Vote, snapshot: Snapshot) -> Result<Vote, PeerError> {
        let to = self.to;
        let unreachable = |reason: String| PeerError::Unreachable { to, reason };
        let SnapshotData::Image(image) = snapshot.snapshot else {
            return Err(unreachable("the snapshot is not this member's own".to_owned()));
        };
        let io = self.dial().await.map_err(unreachable)?;
        let lost = |_| PeerError::Lost { to };
        let (connection, response, mut stream) = lane::begin(io, SNAPSHOT).await.map_err(lost)?;
        // It ends with the stream's handles, or when the peer goes.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let _end = AbortOnDrop(driver);

        let begun = Instant::now();
        let head = pb::SnapshotHead {
            hello: Some(self.hello),
            vote: Some(message::put_vote(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(message::put_log_id),
        };
        info!(to = format_args!("{to:x}"), snapshot = %snapshot.meta, "sending database snapshot");
        let (pieces, mut read) = mpsc::channel(READ_AHEAD);
        let metrics = self.metrics;
        let read_by = metrics.clone();
        let reading = bulk::spawn("send snapshot", move || {
            let begun = Instant::now();
            for piece in image.read() {
                let piece = piece.map(|piece| (piece.len(), part(Body::Piece(piece))));
                if pieces.blocking_send(piece).is_err() {
                    return;
                }
            }
            read_by.streamed(begun.elapsed());
        });
        let mut answers = std::pin::pin!(async {
            let response = response.await.map_err(lost)?;
            if response.status() != http::StatusCode::OK {
                return Err(unreachable(format!(
                    "it answers with HTTP status {}",
                    response.status()
                )));
            }
            let mut answers = Reader::new(response.into_body());
            match answers.next::<pb::SnapshotAnswer>().await {
                Some(Ok(answer)) => Ok(answer),
                Some(Err(_)) | None => Err(PeerError::Lost { to }),
            }
        });
        let sending = async {
            send(&metrics, &mut stream, part(Body::Head(head)))
                .await
                .ok_or(PeerError::Lost { to })?;
            let mut bytes = 0;
            let mut pace = Pace::begin();
            while let Some(piece) = read.recv().await {
                let piece = piece.map_err(|error| unreachable(format!("the store can't be read: {error}")));
                let (len, piece) = piece?;
                bytes += len as u64;
                pace.wait_for(len).await;
                send(&metrics, &mut stream, piece).await.ok_or(PeerError::Lost { to })?;
            }
            send(&metrics, &mut stream, part(Body::End(bytes)))
                .await
                .ok_or(PeerError::Lost { to })?;
            Ok::<u64, PeerError>(bytes)
        };
        let mut sent = None;
        let answer = tokio::select! {
            biased;
            answer = &mut answers => answer?,
            done = sending => {
                sent = Some(done?);
                tokio::time::timeout(INSTALL, answers).await.map_err(|_| PeerError::Lost { to })??
            }
        };
        // The reader ends by itself once nobody wants its pieces.
        drop(reading);
        match answer.body {
            Some(snapshot_answer::Body::Vote(vote)) => {
                let took_secs = begun.elapsed().as_secs_f64();
                info!(
                    to = format_args!("{to:x}"),
                    bytes = sent,
                    took_secs,
                    "sent database snapshot"
                );
                message::get_vote(Some(vote)).map_err(|_| PeerError::Lost { to })
            }
            Some(snapshot_answer::Body::Refused(refused)) => Err(PeerError::Refused {
                to,
                reason: refused.reason(),
                text: refused.text,
            }),
            None => Err(PeerError::Lost { to }),
        }
    }
}

impl Sending {
    /// Connects to the first of the peer's URLs that answers.
    async fn dial(&self) -> Result<Box<dyn PeerStream>, String> {
        let mut reason = "no peer URL is known".to_owned();
        for url in &self.urls {
            match self.dialer.dial_for(url, Alpn::H2).await {
                Ok(io) => return Ok(io),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

/// Keeps to [`RATE`].
struct Pace {
    due: Instant,
}

impl Pace {
    fn begin() -> Self {
        Self { due: Instant::now() }
    }

    /// Until so many bytes more may go.
    async fn wait_for(&mut self, bytes: usize) {
        let now = Instant::now();
        self.due = self.due.max(now.checked_sub(BURST).unwrap_or(now));
        tokio::time::sleep_until(self.due).await;
        self.due += Duration::from_secs_f64(bytes as f64 / f64::from(RATE));
    }
}

fn part(body: Body) -> Bytes {
    frames::frame(&pb::SnapshotPart { body: Some(body) })
}

/// Waits until the peer has room, for what makes a whole frame: a message that comes in one need not be put together
/// there. `None`: it is gone or takes nothing any more.
async fn send(peer: &Peer, stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let enough = bytes.len().min(frames::FRAME_BYTES as usize);
        while stream.capacity() < enough {
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            tokio::time::timeout(STALL, room).await.ok()??.ok()?;
        }
        let now = bytes.split_to(enough);
        peer.sent(now.len());
        stream.send_data(now, false).ok()?;
    }
    Some(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_transfer_keeps_its_pace_and_does_not_make_up_for_what_held_it_up() {
        let piece = 256 << 10;
        let send = async |pace: &mut Pace, seconds: u32| {
            for _ in 0..seconds * RATE / piece {
                pace.wait_for(piece as usize).await;
            }
        };
        let mut pace = Pace::begin();
        let begun = Instant::now();
        send(&mut pace, 2).await;
        assert!(begun.elapsed().abs_diff(Duration::from_secs(2)) < BURST);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let held_up = Instant::now();
        send(&mut pace, 1).await;
        assert!(held_up.elapsed().abs_diff(Duration::from_secs(1)) < BURST * 3 / 2);
    }
}
