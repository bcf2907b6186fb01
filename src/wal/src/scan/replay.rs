//! The records of a log in order, and what they add up to.

use bytes::Bytes;

use super::window::Window;
use super::{Later, Live, Opening, STEP, Scan, Segment, check_reaches, later_batch};
use crate::entry::LogPos;
use crate::format::{self, BATCH, HEADER, Record, record_bytes};
use crate::log::Log;
use crate::segment::{Place, SegmentId};
use crate::{Error, Torn};

/// The batch that is being replayed.
#[derive(Clone, Copy)]
struct Extent {
    start: u64,
    end: u64,
    records_left: u32,
}

pub(super) struct Replay {
    log: Log,
    vote: Option<Bytes>,
    committed: Option<LogPos>,
    pub(super) oldest: SegmentId,
    live: Vec<Live>,
    end: Place,
    synced: Place,
    session: u32,
    /// The last record was an end mark.
    clean_stop: bool,
    torn: Option<Torn>,
    begun: bool,
}

impl Replay {
    pub(super) fn new(first: SegmentId) -> Self {
        let start = Place {
            segment: first,
            offset: HEADER as u64,
        };
        Self {
            log: Log::default(),
            vote: None,
            committed: None,
            oldest: SegmentId(0), // until the first record tells
            live: Vec::new(),
            end: start,
            synced: start,
            session: 0,
            clean_stop: false,
            torn: None,
            begun: false,
        }
    }

    /// Replays one segment. `next` says where it ends; the last one has to find out by itself, with the help of what
    /// follows it in `rest` (which starts with the segment).
    pub(super) fn segment(&mut self, segment: &Segment, next: Option<&Opening>, rest: &[Segment]) -> Result<(), Error> {
        let id = segment.id;
        let last = next.is_none();
        let limit = match next.map(|next| next.previous_end) {
            Some(end) if end.segment == id && end.offset <= segment.bytes => end.offset,
            Some(end) => {
                let what = format!(
                    "it says that the segment before it is {} and ends at {}",
                    end.segment, end.offset
                );
                return Err(Error::damage(id.next(), HEADER as u64, what));
            }
            None => segment.bytes,
        };
        self.live.push(Live {
            segment: segment.clone(),
            max_index: None,
        });
        let mut window = Window::new(segment, STEP);
        let mut at = HEADER as u64;
        let mut extent = Extent {
            start: at,
            end: at,
            records_left: 0,
        };
        loop {
            if at == limit
                && let Some(next) = next
            {
                // A batch that was cut may have its cut mark in the next segment.
                if at < extent.end && next.session == self.session {
                    return Err(Error::damage(
                        id,
                        at,
                        format!("the batch at {} is not whole", extent.start),
                    ));
                }
                break;
            }
            let stop = if at > limit {
                "the records go on beyond the end of the segment".to_owned()
            } else {
                match window.record(at)? {
                    Ok((head, _)) if head.session < self.session => "a left-over from before a restart".to_owned(),
                    Ok((head, body)) => {
                        let damage = |what: String| Error::damage(id, at, what);
                        let record = format::decode(head.kind, body).map_err(damage)?;
                        let place = Place {
                            segment: id,
                            offset: at,
                        };
                        let bytes = record_bytes(head.len) as u64;
                        self.extent(&mut extent, place, segment.bytes, head.session, &record, bytes)
                            .map_err(damage)?;
                        self.session = head.session;
                        self.record(place, &record).map_err(damage)?;
                        self.clean_stop = record == Record::End;
                        at += bytes;
                        continue;
                    }
                    Err(stop) => stop,
                }
            };
            if !last {
                return Err(Error::damage(id, at, stop));
            }
            if let Some(Later { at: later, synced }) = later_batch(rest, id, at, self.session)? {
                // If this segment had been left behind by then, it may well end here: the bad one is the next one's first.
                let bad = if synced.segment > id {
                    Place {
                        segment: id.next(),
                        offset: HEADER as u64,
                    }
                } else {
                    Place {
                        segment: id,
                        offset: at,
                    }
                };
                let what = format!(
                    "{stop}, yet the batch at {} of segment {} was written after this was synced",
                    later.offset, later.segment
                );
                return Err(Error::damage(bad.segment, bad.offset, what));
            }
            if at < extent.end {
                self.torn = Some(Torn {
                    segment: id,
                    offset: at,
                    what: stop,
                });
                self.clean_stop = false;
            }
            break;
        }
        self.end = Place {
            segment: id,
            offset: at,
        };
        Ok(())
    }

    /// Checks the record against the batch it is in.
    fn extent(
        &mut self,
        extent: &mut Extent,
        at: Place,
        segment_bytes: u64,
        session: u32,
        record: &Record<'_>,
        bytes: u64,
    ) -> Result<(), String> {
        if let Record::Batch(batch) = record {
            // A batch within another's reach is the first one after a cut.
            if at.offset < extent.end && session == self.session {
                return Err(format!("a batch begins inside the one at {}", extent.start));
            }
            if at.offset == extent.end && extent.records_left != 0 {
                return Err(format!(
                    "the batch at {} holds {} records too few",
                    extent.start, extent.records_left
                ));
            }
            if batch.synced > at {
                return Err("the batch claims to be synced before it is written".into());
            }
            let len = u64::from(batch.bytes);
            let left = segment_bytes - at.offset;
            if len > left || len < bytes || !len.is_multiple_of(8) {
                return Err(format!("the batch claims {len} bytes, {left} are left"));
            }
            *extent = Extent {
                start: at.offset,
                end: at.offset + len,
                records_left: batch.records,
            };
            self.synced = self.synced.max(batch.synced);
            return Ok(());
        }
        if at.offset + bytes > extent.end || extent.records_left == 0 || session != self.session {
            return Err(format!("a {:?} record outside any batch", record.kind()));
        }
        extent.records_left -= 1;
        Ok(())
    }

    fn record(&mut self, at: Place, record: &Record<'_>) -> Result<(), String> {
        match record {
            Record::Batch(_) | Record::Open | Record::End => {}
            Record::State(state) => {
                if at.offset != (HEADER + BATCH) as u64 {
                    return Err("a State record that does not open the segment".into());
                }
                self.state(state, at.segment)?;
            }
            Record::Entry { pos, payload } => {
                let last = self.log.last();
                if !Log::follows(last, *pos) {
                    let last = last.map_or("nothing".to_owned(), |last| last.to_string());
                    return Err(format!("entry {pos} follows {last} (term/index)"));
                }
                self.log.push_written(*pos, payload.len(), at);
                if let Some(live) = self.live.last_mut() {
                    live.max_index = live.max_index.max(Some(pos.index));
                }
            }
            Record::Vote(vote) => self.vote = Some(Bytes::copy_from_slice(vote)),
            Record::Committed(pos) => self.committed = Some(*pos),
            Record::Truncate(None) => self.log.truncate(None),
            Record::Truncate(Some(last)) => {
                let known = self.log.term_at(last.index).is_none_or(|term| term == last.term);
                if !known || self.log.last().is_none_or(|end| end.index < last.index) {
                    return Err(format!("truncation after {last}, which is not in the log"));
                }
                self.log.truncate_below(*last);
            }
            Record::Purge { upto, oldest } => {
                if self.log.last().is_none_or(|last| last.index < upto.index) {
                    return Err(format!("purge up to {upto}, which is beyond the log"));
                }
                self.log.purge(*upto);
                self.free(*oldest)?;
            }
            Record::Reset { upto, oldest } => {
                self.log.reset(*upto);
                self.live.iter_mut().for_each(|live| live.max_index = None);
                self.free(*oldest)?;
            }
        }
        Ok(())
    }

    fn state(&mut self, state: &format::State<'_>, segment: SegmentId) -> Result<(), String> {
        let format::State {
            vote,
            committed,
            purged,
            last,
            oldest,
        } = state;
        if self.begun {
            // What was replayed and what the writer remembered have to be the same.
            let same = self.vote.as_deref() == *vote
                && self.committed == *committed
                && self.log.purged() == *purged
                && self.log.last() == *last;
            if !same {
                return Err("the state told here differs from what the segments before it tell".into());
            }
        } else {
            self.begun = true;
            self.vote = vote.map(Bytes::copy_from_slice);
            self.committed = *committed;
            self.log = Log::after(*purged, *last);
        }
        if *oldest > segment.0 {
            return Err(format!(
                "the oldest segment needed is said to be {}, which is still to come",
                SegmentId(*oldest)
            ));
        }
        self.free(SegmentId(*oldest))
    }

    fn free(&mut self, oldest: SegmentId) -> Result<(), String> {
        if self.live.last().is_some_and(|live| live.segment.id < oldest) {
            return Err(format!(
                "the oldest segment needed is said to be {oldest}, which is still to come"
            ));
        }
        self.oldest = self.oldest.max(oldest);
        Ok(())
    }

    pub(super) fn finish(self, applied: Option<LogPos>) -> Result<Scan, Error> {
        let Self {
            log,
            vote,
            committed,
            oldest,
            live,
            end,
            synced,
            session,
            clean_stop,
            torn,
            begun: _,
        } = self;
        let damage = |what: String| Error::damage(end.segment, end.offset, what);
        if log.has_hole() {
            return Err(damage(format!(
                "entries below {} are neither here nor purged",
                log.first()
            )));
        }
        check_reaches(&log, committed, "committed").map_err(damage)?;
        check_reaches(&log, applied, "applied").map_err(damage)?;
        Ok(Scan {
            log,
            vote,
            committed,
            live,
            retired: Vec::new(),
            next: None,
            unused: Vec::new(),
            oldest,
            end,
            synced,
            session,
            clean_stop,
            torn,
        })
    }
}
