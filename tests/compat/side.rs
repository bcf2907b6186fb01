//! One server and everything a sequence has open on it.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader,
    StatusRequest, StatusResponse, TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_api::proto::mvccpb::Event;
use quorate_kit::rpc::Bidi;
use quorate_kit::{Binary, Config, Node, Rpc};
use tonic::Status;

use crate::op::Op;
use crate::reply::{Normal, Reply, Seen, Step};
use crate::watchers::{Watcher, Watchers};

/// How long anything that must come is waited for.
const LIMIT: Duration = Duration::from_secs(10);
/// Sorts behind every key of a sequence.
const FENCE: &[u8] = b"~fence";
/// Above any id a sequence uses.
const FENCE_ID: i64 = 1_000_000;
const WATCH: &str = "/etcdserverpb.Watch/Watch";

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
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
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
        let status: StatusResponse =
            self.rpc.unary("/etcdserverpb.Maintenance/Status", &StatusRequest::default()).await?;
        let header = status.header.clone().unwrap_or_default();
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
            Some(WatchResponse { created: true, canceled: false, .. }) => {}
            other => return Err(Status::internal(format!("the recorder was not created: {other:?}"))),
        }
        self.recorder = Some(recorder);
        if fresh {
            self.compacted = -1;
        } else {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
            let delete = DeleteRangeRequest { key: FENCE.into(), ..DeleteRangeRequest::default() };
            let gone: DeleteRangeResponse = self.rpc.unary("/etcdserverpb.KV/DeleteRange", &delete).await?;
            self.advance(gone.header.as_ref()).await?;
            let compact = CompactionRequest { revision: self.revision, physical: true };
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
        let leases: LeaseLeasesResponse =
            self.rpc.unary("/etcdserverpb.Lease/LeaseLeases", &LeaseLeasesRequest {}).await?;
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
        let compares = TxnRequest { compare: txn.compare.clone(), ..TxnRequest::default() };
        let compared: TxnResponse = self.rpc.unary("/etcdserverpb.KV/Txn", &compares).await?;
        for op in if compared.succeeded { &txn.success } else { &txn.failure } {
            let probes = match &op.request {
                Some(Request::RequestRange(_)) => vec![vec![op.clone()]],
                Some(Request::RequestPut(put)) => {
                    let lease = PutRequest { ignore_value: false, ignore_lease: false, ..put.clone() };
                    let key = PutRequest { lease: 0, ..put.clone() };
                    [lease, key].map(|put| vec![Request::RequestPut(put).into_op(), the_future()]).to_vec()
                }
                Some(Request::RequestTxn(inner)) => match Box::pin(self.refusal_of(inner)).await? {
                    None => Vec::new(),
                    refused => return Ok(refused),
                },
                Some(Request::RequestDeleteRange(_)) | None => Vec::new(),
            };
            for success in probes {
                let guarded = success.len() > 1;
                let probe = TxnRequest { success, ..TxnRequest::default() };
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

    /// Deletions that this server forgot to send since the last call, as differences.rs has it.
    pub fn take_forgotten(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        for (stream, open) in self.streams.iter_mut().enumerate() {
            for (&watch_id, watcher) in &mut open.watchers {
                for event in watcher.forgotten.drain(..) {
                    let mut seen = Seen { stream, watch_id, header: self.revision, event };
                    self.normal.seen(&mut seen);
                    all.push(seen);
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
                gathered.broken.push(format!("{}, after {:?}", status.message(), gathered.control));
                Reply::Nothing
            }
            Err(status) => {
                if !self.node.is_running() {
                    gathered.broken.push(format!("the process has ended: {status}"));
                }
                Reply::from_status(&status)
            }
        };
        if let Reply::Watch(_) = &reply {
            reply = Reply::Watch(std::mem::take(&mut gathered.control));
        } else if !gathered.control.is_empty() {
            gathered.broken.push(format!("answers nobody asked for: {:?}", gathered.control));
        }
        if gathered.broken.is_empty() {
            self.settle(&mut gathered).await;
        }
        self.normal.reply(&op, &mut reply);
        let mut recorded = self.recorded[before..].to_vec();
        recorded.iter_mut().for_each(|event| self.normal.event(event));
        let mut seen: Vec<Seen> = gathered.seen.into_values().flatten().collect();
        seen.iter_mut().for_each(|seen| self.normal.seen(seen));
        Step { reply, seen, recorded, broken: gathered.broken }
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
                let answer: TxnResponse =
                    rpc.unary("/etcdserverpb.KV/Txn", request).await?;
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
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        let reached = |recorded: &[Event]| {
            recorded.last().and_then(|event| event.kv.as_ref()).is_some_and(|kv| kv.mod_revision >= revision)
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
        let again = CompactionRequest { physical: true, ..*request };
        let again = match self.rpc.unary("/etcdserverpb.KV/Compact", &again).await {
            Ok(answer) => Reply::Compact(answer, Box::new(Reply::Nothing)),
            Err(status) => Reply::from_status(&status),
        };
        Ok(Reply::Compact(answer, Box::new(again)))
    }

    async fn watch(
        &mut self,
        stream: usize,
        request: &WatchCreateRequest,
        gathered: &mut Gathered,
    ) -> Result<Reply, Status> {
        self.send(stream, create(request.clone())).await?;
        let created = self.read_until(stream, gathered, |answer| answer.created).await?;
        if created.canceled {
            return Ok(Reply::Watch(Vec::new()));
        }
        let watcher =
            Watcher::new(request, self.recorded.len(), self.revision, self.compacted, self.is_34);
        let (doomed, historical) = (watcher.doomed, request.start_revision > 0);
        self.streams[stream].watchers.insert(created.watch_id, watcher);
        self.unsettled |= historical;
        if doomed {
            self.read_until(stream, gathered, |answer| answer.canceled).await?;
        }
        Ok(Reply::Watch(Vec::new()))
    }

    async fn cancel(
        &mut self,
        stream: usize,
        request: WatchCancelRequest,
        gathered: &mut Gathered,
    ) -> Result<Reply, Status> {
        if self.streams[stream].call.is_none() {
            return Ok(Reply::Nothing);
        }
        let known = self.streams[stream].watchers.remove(&request.watch_id).is_some();
        self.send(stream, WatchRequest { request_union: Some(RequestUnion::CancelRequest(request)) }).await?;
        if known {
            self.read_until(stream, gathered, |answer| answer.canceled).await?;
        }
        // an unknown id is passed over in silence; the next thing on the stream shows it
        Ok(Reply::Watch(Vec::new()))
    }

    /// Progress may be answered or not. A fence behind it shows which.
    async fn progress(&mut self, stream: usize, gathered: &mut Gathered) -> Result<Reply, Status> {
        if self.streams[stream].call.is_none() {
            return Ok(Reply::Nothing);
        }
        if self.unsettled {
            self.fence(stream, true, gathered).await?;
            self.unsettled = false;
        }
        // someone watches, and everyone has caught up and has come to its first revision
        let watchers = || self.streams[stream].watchers.values().filter(|watcher| watcher.start >= 0);
        self.progress_was_due =
            watchers().count() > 0 && watchers().all(|watcher| !watcher.doomed && watcher.start <= self.revision);
        let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
        self.send(stream, WatchRequest { request_union: Some(request) }).await?;
        self.fence(stream, false, gathered).await?;
        Ok(Reply::Watch(Vec::new()))
    }

    /// A write, and a watcher that sees it: everything asked for earlier on the stream has been answered when it has.
    /// With `catch_up` the watcher is one of the past, so that every earlier watcher has caught up as well.
    async fn fence(&mut self, stream: usize, catch_up: bool, gathered: &mut Gathered) -> Result<(), Status> {
        self.fences += 1;
        let watch_id = FENCE_ID + self.fences;
        let mut request = WatchCreateRequest { key: FENCE.into(), watch_id, ..WatchCreateRequest::default() };
        if catch_up {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
            request.start_revision = self.revision;
        }
        let control = gathered.control.len();
        self.send(stream, create(request.clone())).await?;
        self.read_until(stream, gathered, |answer| answer.created && answer.watch_id == watch_id).await?;
        let watcher = Watcher::new(&request, self.recorded.len(), self.revision, self.compacted, self.is_34);
        self.streams[stream].watchers.insert(watch_id, watcher);
        if !catch_up {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
        }
        self.settle(gathered).await;
        self.send(stream, cancel(watch_id)).await?;
        self.read_until(stream, gathered, |answer| answer.canceled && answer.watch_id == watch_id).await?;
        self.streams[stream].watchers.remove(&watch_id);
        let mut at = 0;
        gathered.control.retain(|answer| {
            at += 1;
            at <= control || answer.watch_id != watch_id
        });
        gathered.seen.remove(&(stream, watch_id));
        Ok(())
    }

    async fn send(&mut self, stream: usize, request: WatchRequest) -> Result<(), Status> {
        let open = &mut self.streams[stream];
        match &open.call {
            Some(call) => {
                if !call.send(&request).await {
                    return Err(Status::internal("the watch stream has ended"));
                }
            }
            None => open.call = Some(self.rpc.bidi(WATCH, &request).await?),
        }
        Ok(())
    }

    /// Reads until an answer without events fits; events on the way go to their watchers.
    async fn read_until(
        &mut self,
        stream: usize,
        gathered: &mut Gathered,
        fits: impl Fn(&WatchResponse) -> bool,
    ) -> Result<WatchResponse, Status> {
        loop {
            if let Some(answer) = self.read(stream, gathered).await?
                && fits(&answer)
            {
                return Ok(answer);
            }
        }
    }

    /// Reads one answer; gives it back when it brought no events.
    async fn read(&mut self, stream: usize, gathered: &mut Gathered) -> Result<Option<WatchResponse>, Status> {
        let open = &mut self.streams[stream];
        let Some(call) = &mut open.call else { return Err(Status::internal("no watch stream is open")) };
        let Some(answer) = call.next::<WatchResponse>(LIMIT).await? else {
            return Err(Status::internal("the watch stream ended"));
        };
        if answer.events.is_empty() {
            gathered.control.push(answer.clone());
            return Ok(Some(answer));
        }
        let header = answer.header.as_ref().map_or(0, |header| header.revision);
        let watch_id = answer.watch_id;
        let Some(watcher) = open.watchers.get_mut(&watch_id) else {
            gathered.broken.push(format!("events for watcher {watch_id}, which is not there: {answer:?}"));
            return Ok(None);
        };
        watcher.look(&self.recorded);
        for event in answer.events {
            if let Err(why) = watcher.came(&event, header) {
                gathered.broken.push(format!("watcher {watch_id} of stream {stream}: {why}"));
            }
            gathered.seen.entry((stream, watch_id)).or_default().push(Seen { stream, watch_id, header, event });
        }
        Ok(None)
    }

    /// Waits until every watcher has what is due to it.
    async fn settle(&mut self, gathered: &mut Gathered) {
        for stream in 0..self.streams.len() {
            loop {
                let open = &mut self.streams[stream];
                open.watchers.values_mut().for_each(|watcher| watcher.look(&self.recorded));
                let Some((id, late)) = open.watchers.iter().find(|(_, watcher)| watcher.is_waiting()) else { break };
                let missing = format!("watcher {id} of stream {stream} still waits for {}", late.missing());
                match self.read(stream, gathered).await {
                    Ok(_) if gathered.broken.is_empty() => {}
                    Ok(_) => return,
                    Err(status) => {
                        gathered.broken.push(format!("{missing}: {}", status.message()));
                        return;
                    }
                }
            }
        }
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
            return Err(Status::internal(format!("an early piece has what belongs to the last: {part:?}")));
        }
        whole.kvs.extend(part.kvs);
        whole.header = part.header;
        whole.more = part.more;
        whole.count = part.count;
    }
    Ok(whole)
}

async fn keep_alive(rpc: &Rpc, ids: &[i64]) -> Result<Reply, Status> {
    let Some((first, rest)) = ids.split_first() else { return Ok(Reply::Nothing) };
    let mut call = rpc.bidi("/etcdserverpb.Lease/LeaseKeepAlive", &LeaseKeepAliveRequest { id: *first }).await?;
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
    Request::RequestRange(RangeRequest { key: FENCE.into(), revision: i64::MAX, ..RangeRequest::default() }).into_op()
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
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

fn cancel(watch_id: i64) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) }
}

fn fence_put() -> PutRequest {
    PutRequest { key: FENCE.into(), ..PutRequest::default() }
}
