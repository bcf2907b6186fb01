//! One server and everything a sequence has open on it.

mod streams;

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader,
    StatusRequest, StatusResponse, TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use quorate_api::proto::mvccpb::Event;
use quorate_kit::rpc::Bidi;
use quorate_kit::{Binary, Config, Node, Rpc};
use tonic::Status;

use crate::op::Op;
use crate::reply::{Normal, Reply, Seen, Step};
use crate::watchers::Watchers;

/// How long anything that must come is waited for.
const LIMIT: Duration = Duration::from_secs(10);
/// Sorts behind every key of a sequence.
const FENCE: &[u8] = b"~fence";
/// Above any id a sequence uses.
const FENCE_ID: i64 = 1_000_000;
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// What all pairs may need at once. Containers often have 64 MiB there.
const MEMORY_MIN: u64 = 2 << 30;

fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[derive(Debug)]
pub struct Side {
    pub node: Node,
    rpc: Rpc,
    normal: Normal,
    /// The store's revision and the compacted one, as far as this side has told.
    revision: i64,
    compacted: i64,
    recorder: Option<Bidi>,
    recorded: Vec<Event>,
    streams: [Stream; 2],
    fences: i64,
    /// A watcher of the past may not have caught up, though nothing is due to it.
    unsettled: bool,
    progress_was_due: bool,
    is_34: bool,
    _dir: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct Stream {
    call: Option<Bidi>,
    watchers: Watchers,
}

/// What an operation has brought so far.
#[derive(Default)]
struct Gathered {
    control: Vec<WatchResponse>,
    seen: BTreeMap<(usize, i64), Vec<Seen>>,
    broken: Vec<String>,
}

impl Side {
    /// A fresh server. Its files are in memory where the machine has that: this suite is not about disks.
    pub fn start(binary: &Binary) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let dir = match free_bytes(memory) {
            Some(free) if free >= MEMORY_MIN => tempfile::tempdir_in(memory),
            _ => tempfile::tempdir(),
        }
        .expect("a temporary directory");
        let node = Node::start(Config::new(binary.clone(), dir.path()));
        Self {
            rpc: node.rpc(),
            node,
            normal: Normal::default(),
            revision: 0,
            compacted: -1,
            recorder: None,
            recorded: Vec::new(),
            streams: Default::default(),
            fences: 0,
            unsettled: false,
            progress_was_due: false,
            is_34: binary.is_34(),
            _dir: dir,
        }
    }

    /// Makes a clean start: an empty store, compacted at its current revision (unless `fresh` asks to leave a new
    /// server as it is), a recorder, no watchers.
    pub async fn begin(&mut self, fresh: bool) -> Result<(), Status> {
        let status: StatusResponse = self
            .rpc
            .unary("/etcdserverpb.Maintenance/Status", &StatusRequest::default())
            .await?;
        let header = status.header.unwrap_or_default();
        self.recorded.clear();
        self.streams = Default::default();
        self.unsettled = false;
        self.revision = header.revision;
        let everything = WatchCreateRequest {
            key: b"\0".to_vec().into(),
            range_end: b"\0".to_vec().into(),
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let mut recorder = self.rpc.bidi(WATCH, &create(everything)).await?;
        match recorder.next::<WatchResponse>(LIMIT).await? {
            Some(WatchResponse {
                created: true,
                canceled: false,
                ..
            }) => {}
            other => return Err(Status::internal(format!("the recorder was not created: {other:?}"))),
        }
        self.recorder = Some(recorder);
        if fresh {
            self.compacted = -1;
        } else {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
            let delete = DeleteRangeRequest {
                key: FENCE.into(),
                ..DeleteRangeRequest::default()
            };
            let gone: DeleteRangeResponse = self.rpc.unary("/etcdserverpb.KV/DeleteRange", &delete).await?;
            self.advance(gone.header.as_ref()).await?;
            let compact = CompactionRequest {
                revision: self.revision,
                physical: true,
            };
            let _: CompactionResponse = self.rpc.unary("/etcdserverpb.KV/Compact", &compact).await?;
            self.compacted = self.revision;
        }
        self.normal = Normal {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            raft_term: header.raft_term,
            base: self.revision,
        };
        Ok(())
    }

    /// Takes away what the sequence left, so that the next one begins as on a new server.
    pub async fn end(&mut self) -> Result<(), Status> {
        self.streams = Default::default();
        self.recorder = None;
        let all = DeleteRangeRequest {
            key: b"\0".to_vec().into(),
            range_end: b"\0".to_vec().into(),
            prev_kv: false,
        };
        let _: DeleteRangeResponse = self.rpc.unary("/etcdserverpb.KV/DeleteRange", &all).await?;
        let leases: LeaseLeasesResponse = self
            .rpc
            .unary("/etcdserverpb.Lease/LeaseLeases", &LeaseLeasesRequest {})
            .await?;
        for lease in leases.leases {
            let revoke = LeaseRevokeRequest { id: lease.id };
            let _: LeaseRevokeResponse = self.rpc.unary("/etcdserverpb.Lease/LeaseRevoke", &revoke).await?;
        }
        Ok(())
    }

    /// Whether 3.7 would have answered the last progress request.
    pub fn progress_was_due(&self) -> bool {
        self.progress_was_due
    }

    /// Which refusal 3.7 gives a transaction that may refuse for several reasons: the first in the order of its
    /// operations, a put's lease before its key. Found by probes that change nothing, right after the refusal.
    pub async fn first_refusal(&self, op: &Op) -> Result<Option<Reply>, Status> {
        match op.resolve(self.normal.base) {
            Op::Txn(txn) => Ok(self.refusal_of(&txn).await?.map(|status| Reply::from_status(&status))),
            _ => Ok(None),
        }
    }

    async fn refusal_of(&self, txn: &TxnRequest) -> Result<Option<Status>, Status> {
        let compares = TxnRequest {
            compare: txn.compare.clone(),
            ..TxnRequest::default()
        };
        let compared: TxnResponse = self.rpc.unary("/etcdserverpb.KV/Txn", &compares).await?;
        for op in if compared.succeeded { &txn.success } else { &txn.failure } {
            let probes = match &op.request {
                Some(Request::RequestRange(_)) => vec![vec![op.clone()]],
                Some(Request::RequestPut(put)) => {
                    let lease = PutRequest {
                        ignore_value: false,
                        ignore_lease: false,
                        ..put.clone()
                    };
                    let key = PutRequest {
                        lease: 0,
                        ..put.clone()
                    };
                    [lease, key]
                        .map(|put| vec![Request::RequestPut(put).into_op(), the_future()])
                        .to_vec()
                }
                Some(Request::RequestTxn(inner)) => match Box::pin(self.refusal_of(inner)).await? {
                    None => Vec::new(),
                    refused => return Ok(refused),
                },
                Some(Request::RequestDeleteRange(_)) | None => Vec::new(),
            };
            for success in probes {
                let guarded = success.len() > 1;
                let probe = TxnRequest {
                    success,
                    ..TxnRequest::default()
                };
                let probed: Result<TxnResponse, Status> = self.rpc.unary("/etcdserverpb.KV/Txn", &probe).await;
                match probed {
                    Err(status) if guarded && status.message() == THE_FUTURE => {}
                    Err(status) => return Ok(Some(status)),
                    Ok(_) => {}
                }
            }
        }
        Ok(None)
    }

    /// Deletions that this server forgot to send since the last call, each with its place among what its watcher saw.
    pub fn take_forgotten(&mut self) -> Vec<(usize, Seen)> {
        let mut all = Vec::new();
        for (stream, open) in self.streams.iter_mut().enumerate() {
            for (&watch_id, watcher) in &mut open.watchers {
                for (place, event) in watcher.forgotten.drain(..) {
                    let mut seen = Seen {
                        stream,
                        watch_id,
                        header: self.revision,
                        event,
                    };
                    self.normal.seen(&mut seen);
                    all.push((place, seen));
                }
            }
        }
        all
    }

    /// Runs `op` and waits for everything that it must bring.
    pub async fn step(&mut self, op: &Op) -> Step {
        let op = op.resolve(self.normal.base);
        let before = self.recorded.len();
        let mut gathered = Gathered::default();
        let mut reply = match self.run(&op, &mut gathered).await {
            Ok(reply) => reply,
            Err(status) if quorate_kit::rpc::gave_up(&status) => {
                gathered
                    .broken
                    .push(format!("{}, after {:?}", status.message(), gathered.control));
                Reply::Nothing
            }
            Err(status) => {
                if std::error::Error::source(&status).is_some() || status.message().contains("transport error") {
                    gathered.broken.push(self.connection_lost(&status).await);
                }
                Reply::from_status(&status)
            }
        };
        if let Reply::Watch(_) = &reply {
            reply = Reply::Watch(std::mem::take(&mut gathered.control));
        } else if !gathered.control.is_empty() {
            gathered
                .broken
                .push(format!("answers nobody asked for: {:?}", gathered.control));
        }
        if gathered.broken.is_empty() {
            self.settle(&mut gathered).await;
        }
        self.normal.reply(&op, &mut reply);
        let mut recorded = self.recorded[before..].to_vec();
        recorded.iter_mut().for_each(|event| self.normal.event(event));
        let mut seen: Vec<Seen> = gathered.seen.into_values().flatten().collect();
        seen.iter_mut().for_each(|seen| self.normal.seen(seen));
        Step {
            reply,
            seen,
            recorded,
            broken: gathered.broken,
        }
    }

    /// Why a call failed without a word from the server. A process that ends takes a moment to be gone.
    async fn connection_lost(&mut self, status: &Status) -> String {
        for _ in 0..100 {
            if !self.node.is_running() {
                return format!("the process has ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        format!("the connection was lost, the process lives: {status}")
    }

    async fn run(&mut self, op: &Op, gathered: &mut Gathered) -> Result<Reply, Status> {
        let rpc = self.rpc.clone();
        Ok(match op {
            Op::Range(request) => Reply::Range(rpc.unary("/etcdserverpb.KV/Range", request).await?),
            // 3.4 has no such call; its Range says what the pieces must add up to
            Op::RangeStream(request) if self.is_34 => Reply::Range(rpc.unary("/etcdserverpb.KV/Range", request).await?),
            Op::RangeStream(request) => Reply::Range(range_stream(&rpc, request).await?),
            Op::Put(request) => {
                let answer: PutResponse = rpc.unary("/etcdserverpb.KV/Put", request).await?;
                self.advance(answer.header.as_ref()).await?;
                Reply::Put(answer)
            }
            Op::Delete(request) => {
                let answer: DeleteRangeResponse = rpc.unary("/etcdserverpb.KV/DeleteRange", request).await?;
                self.advance(answer.header.as_ref()).await?;
                Reply::Delete(answer)
            }
            Op::Txn(request) => {
                let answer: TxnResponse = rpc.unary("/etcdserverpb.KV/Txn", request).await?;
                self.advance(answer.header.as_ref()).await?;
                Reply::Txn(answer)
            }
            Op::Compact(request) => self.compact(request, gathered).await?,
            Op::Grant(request) => Reply::Grant(rpc.unary("/etcdserverpb.Lease/LeaseGrant", request).await?),
            Op::GrantAndRevoke(request) => {
                let granted: quorate_api::proto::etcdserverpb::LeaseGrantResponse =
                    rpc.unary("/etcdserverpb.Lease/LeaseGrant", request).await?;
                let revoke = LeaseRevokeRequest { id: granted.id };
                let revoked = match rpc.unary("/etcdserverpb.Lease/LeaseRevoke", &revoke).await {
                    Ok(answer) => Reply::Revoke(answer),
                    Err(status) => Reply::from_status(&status),
                };
                Reply::GrantAndRevoke(granted, Box::new(revoked))
            }
            Op::Revoke(request) => {
                let answer: LeaseRevokeResponse = rpc.unary("/etcdserverpb.Lease/LeaseRevoke", request).await?;
                self.advance(answer.header.as_ref()).await?;
                Reply::Revoke(answer)
            }
            Op::TimeToLive(request) => {
                Reply::TimeToLive(rpc.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await?)
            }
            Op::Leases(request) => Reply::Leases(rpc.unary("/etcdserverpb.Lease/LeaseLeases", request).await?),
            Op::KeepAlive(ids) => keep_alive(&rpc, ids).await?,
            Op::Watch(stream, request) => self.watch(*stream, request, gathered).await?,
            Op::Cancel(stream, request) => self.cancel(*stream, *request, gathered).await?,
            Op::Progress(stream) => self.progress(*stream, gathered).await?,
        })
    }

    /// Notes how far the store has come, and waits until the recorder has seen it.
    async fn advance(&mut self, header: Option<&ResponseHeader>) -> Result<(), Status> {
        let revision = header.map_or(0, |header| header.revision);
        if revision <= self.revision {
            return Ok(());
        }
        self.revision = revision;
        let Some(recorder) = &mut self.recorder else {
            return Ok(());
        };
        let reached = |recorded: &[Event]| {
            recorded
                .last()
                .and_then(|event| event.kv.as_ref())
                .is_some_and(|kv| kv.mod_revision >= revision)
        };
        while !reached(&self.recorded) {
            match recorder.next::<WatchResponse>(LIMIT).await? {
                Some(answer) => self.recorded.extend(answer.events),
                None => return Err(Status::internal("the recorder's stream ended")),
            }
        }
        Ok(())
    }

    /// Compacts, then waits until the removal is over: what a read at the edge sees must not depend on its speed.
    async fn compact(&mut self, request: &CompactionRequest, gathered: &mut Gathered) -> Result<Reply, Status> {
        if self.unsettled {
            self.settle(gathered).await;
            self.fence(0, true, gathered).await?;
            self.unsettled = false;
        }
        let answer: CompactionResponse = self.rpc.unary("/etcdserverpb.KV/Compact", request).await?;
        self.compacted = self.compacted.max(request.revision);
        let again = CompactionRequest {
            physical: true,
            ..*request
        };
        let again = match self.rpc.unary("/etcdserverpb.KV/Compact", &again).await {
            Ok(answer) => Reply::Compact(answer, Box::new(Reply::Nothing)),
            Err(status) => Reply::from_status(&status),
        };
        Ok(Reply::Compact(answer, Box::new(again)))
    }
}

/// The pieces put together; in a piece before the last only keys may be set.
async fn range_stream(rpc: &Rpc, request: &RangeRequest) -> Result<RangeResponse, Status> {
    let pieces: Vec<RangeStreamResponse> = rpc.collect("/etcdserverpb.KV/RangeStream", request).await?;
    let count = pieces.len();
    let mut whole = RangeResponse::default();
    for (index, piece) in pieces.into_iter().enumerate() {
        let Some(part) = piece.range_response else {
            return Err(Status::internal("a piece of the range without a range"));
        };
        if index + 1 < count && (part.header.is_some() || part.more || part.count != 0) {
            return Err(Status::internal(format!(
                "an early piece has what belongs to the last: {part:?}"
            )));
        }
        whole.kvs.extend(part.kvs);
        whole.header = part.header;
        whole.more = part.more;
        whole.count = part.count;
    }
    Ok(whole)
}

async fn keep_alive(rpc: &Rpc, ids: &[i64]) -> Result<Reply, Status> {
    let Some((first, rest)) = ids.split_first() else {
        return Ok(Reply::Nothing);
    };
    let mut call = rpc
        .bidi(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            &LeaseKeepAliveRequest { id: *first },
        )
        .await?;
    for id in rest {
        call.send(&LeaseKeepAliveRequest { id: *id }).await;
    }
    call.finish();
    let mut answers = Vec::new();
    loop {
        match call.next::<LeaseKeepAliveResponse>(LIMIT).await {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => return Ok(Reply::KeepAlive(answers, Box::new(Reply::End))),
            Err(status) if quorate_kit::rpc::gave_up(&status) => return Err(status),
            Err(status) => return Ok(Reply::KeepAlive(answers, Box::new(Reply::from_status(&status)))),
        }
    }
}

const THE_FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

/// An operation that makes any transaction fail, but, on 3.4, only after all its puts were checked.
fn the_future() -> RequestOp {
    Request::RequestRange(RangeRequest {
        key: FENCE.into(),
        revision: i64::MAX,
        ..RangeRequest::default()
    })
    .into_op()
}

trait IntoOp {
    fn into_op(self) -> RequestOp;
}

impl IntoOp for Request {
    fn into_op(self) -> RequestOp {
        RequestOp { request: Some(self) }
    }
}

fn create(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(request)),
    }
}

fn cancel(watch_id: i64) -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })),
    }
}

fn fence_put() -> PutRequest {
    PutRequest {
        key: FENCE.into(),
        ..PutRequest::default()
    }
}
