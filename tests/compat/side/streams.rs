//! The watch streams of one side: creating, cancelling and asking on them, and reading what is due.

use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    PutResponse, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tonic::Status;

use super::{FENCE, FENCE_ID, Gathered, LIMIT, Side, WATCH, cancel, create, fence_put};
use crate::reply::{Reply, Seen};
use crate::watchers::Watcher;

impl Side {
    pub(super) async fn watch(
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
        let watcher = Watcher::new(request, self.recorded.len(), self.revision, self.compacted, self.is_34);
        let (doomed, historical) = (watcher.doomed, request.start_revision > 0);
        self.streams[stream].watchers.insert(created.watch_id, watcher);
        self.unsettled |= historical;
        if doomed {
            self.read_until(stream, gathered, |answer| answer.canceled).await?;
        }
        Ok(Reply::Watch(Vec::new()))
    }

    pub(super) async fn cancel(
        &mut self,
        stream: usize,
        request: WatchCancelRequest,
        gathered: &mut Gathered,
    ) -> Result<Reply, Status> {
        if self.streams[stream].call.is_none() {
            return Ok(Reply::Nothing);
        }
        let known = self.streams[stream].watchers.remove(&request.watch_id).is_some();
        self.send(
            stream,
            WatchRequest {
                request_union: Some(RequestUnion::CancelRequest(request)),
            },
        )
        .await?;
        if known {
            self.read_until(stream, gathered, |answer| answer.canceled).await?;
        }
        // an unknown id is passed over in silence; the next thing on the stream shows it
        Ok(Reply::Watch(Vec::new()))
    }

    /// Progress may be answered or not. A fence behind it shows which.
    pub(super) async fn progress(&mut self, stream: usize, gathered: &mut Gathered) -> Result<Reply, Status> {
        if self.streams[stream].call.is_none() {
            return Ok(Reply::Nothing);
        }
        if self.unsettled {
            self.fence(stream, true, gathered).await?;
            self.unsettled = false;
        }
        // someone watches, and everyone has caught up and has come to its first revision
        let watchers = || {
            self.streams[stream]
                .watchers
                .values()
                .filter(|watcher| watcher.start >= 0)
        };
        self.progress_was_due =
            watchers().count() > 0 && watchers().all(|watcher| !watcher.doomed && watcher.start <= self.revision);
        let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
        self.send(
            stream,
            WatchRequest {
                request_union: Some(request),
            },
        )
        .await?;
        self.fence(stream, false, gathered).await?;
        Ok(Reply::Watch(Vec::new()))
    }

    /// A write, and a watcher that sees it: everything asked for earlier on the stream has been answered when it has.
    /// With `catch_up` the watcher is one of the past, so that every earlier watcher has caught up as well.
    pub(super) async fn fence(&mut self, stream: usize, catch_up: bool, gathered: &mut Gathered) -> Result<(), Status> {
        self.fences += 1;
        let watch_id = FENCE_ID + self.fences;
        let mut request = WatchCreateRequest {
            key: FENCE.into(),
            watch_id,
            ..WatchCreateRequest::default()
        };
        if catch_up {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
            request.start_revision = self.revision;
        }
        let control = gathered.control.len();
        self.send(stream, create(request.clone())).await?;
        self.read_until(stream, gathered, |answer| answer.created && answer.watch_id == watch_id)
            .await?;
        let watcher = Watcher::new(&request, self.recorded.len(), self.revision, self.compacted, self.is_34);
        self.streams[stream].watchers.insert(watch_id, watcher);
        if !catch_up {
            let put: PutResponse = self.rpc.unary("/etcdserverpb.KV/Put", &fence_put()).await?;
            self.advance(put.header.as_ref()).await?;
        }
        self.settle(gathered).await;
        self.send(stream, cancel(watch_id)).await?;
        self.read_until(stream, gathered, |answer| {
            answer.canceled && answer.watch_id == watch_id
        })
        .await?;
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
        let Some(call) = &mut open.call else {
            return Err(Status::internal("no watch stream is open"));
        };
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
            gathered
                .broken
                .push(format!("events for watcher {watch_id}, which is not there: {answer:?}"));
            return Ok(None);
        };
        watcher.look(&self.recorded);
        for event in answer.events {
            if let Err(why) = watcher.came(&event, header) {
                gathered
                    .broken
                    .push(format!("watcher {watch_id} of stream {stream}: {why}"));
            }
            gathered.seen.entry((stream, watch_id)).or_default().push(Seen {
                stream,
                watch_id,
                header,
                event,
            });
        }
        Ok(None)
    }

    /// Waits until every watcher has what is due to it.
    pub(super) async fn settle(&mut self, gathered: &mut Gathered) {
        for stream in 0..self.streams.len() {
            loop {
                let open = &mut self.streams[stream];
                open.watchers
                    .values_mut()
                    .for_each(|watcher| watcher.look(&self.recorded));
                let Some((id, late)) = open.watchers.iter().find(|(_, watcher)| watcher.is_waiting()) else {
                    break;
                };
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
