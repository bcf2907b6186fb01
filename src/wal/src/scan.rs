//! Reading a whole log back: what it says, where it ends, and whether that end can be believed.
//!
//! A scan only reads. It replays the records in order; the first one that can't be right is either the torn tail of a
//! batch that was never acknowledged, or damage. It is damage when something written later shows that the place had
//! been synced: a later batch that says so, a later segment, the committed position or the backend's applied one.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::File;
use crate::entry::LogPos;
use crate::format::{self, BATCH, HEADER, Head, HeaderFault, Kind, RECORD, Record, record_bytes};
use crate::log::Log;
use crate::segment::{Place, SegmentId};
use crate::{Error, Torn};

/// A file that is named as part of the log.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub id: SegmentId,
    /// Its length.
    pub bytes: u64,
    pub file: Arc<dyn File>,
}

/// A segment that the log uses.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub segment: Segment,
    /// The largest index of the entries in it; it can go once all up to this are purged.
    pub max_index: Option<u64>,
}

/// All that a log tells.
#[derive(Debug)]
pub(crate) struct Scan {
    pub log: Log,
    pub vote: Option<Bytes>,
    pub committed: Option<LogPos>,
    /// The last one writes go on in.
    pub live: Vec<Live>,
    /// Purged before the process ended, and not yet retired.
    pub retired: Vec<Segment>,
    /// Prepared and never written to.
    pub next: Option<Segment>,
    /// Named as a segment, with nothing in it and no sound header.
    pub unused: Vec<Segment>,
    /// The oldest segment that is still needed.
    pub oldest: SegmentId,
    /// Where the log ends.
    pub end: Place,
    /// Everything before this is known to have been synced.
    pub synced: Place,
    pub session: u32,
    pub clean_stop: bool,
    pub torn: Option<Torn>,
}

impl Scan {
    /// What there is to say about a log that has one segment and nothing in it.
    pub(crate) fn of_new_log(first: Live) -> Self {
        let start = Place {
            segment: first.segment.id,
            offset: HEADER as u64,
        };
        Self {
            log: Log::default(),
            vote: None,
            committed: None,
            oldest: first.segment.id,
            live: vec![first],
            retired: Vec::new(),
            next: None,
            unused: Vec::new(),
            end: start,
            synced: start,
            session: 0,
            clean_stop: true,
            torn: None,
        }
    }
}

const STEP: u64 = 1 << 20;
const OPENING_STEP: u64 = 4 << 10;

/// A view of a file that moves along with the scan.
struct Window<'a> {
    segment: &'a Segment,
    /// How much is read at a time.
    step: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment, step: u64) -> Self {
        Self {
            segment,
            step,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// `len` bytes from `at`. The caller has made sure that the file has them.
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8], Error> {
        let end = at + len as u64;
        debug_assert!(end <= self.segment.bytes);
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let want = (self.segment.bytes - at).min(self.step.max(len as u64));
            self.bytes.resize(want as usize, 0);
            self.start = at;
            if let Err(e) = self.segment.file.read_at(&mut self.bytes, at) {
                self.bytes.clear();
                return Err(Error::io(
                    "read log segment",
                    self.segment.id.file_name(),
                    e,
                ));
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// The record at `at` if there is a sound one: kind, session and body.
    fn record(&mut self, at: u64) -> Result<Result<(Head, &[u8]), String>, Error> {
        let rest = self.segment.bytes - at;
        if rest < RECORD as u64 {
            return Ok(Err("the segment ends".into()));
        }
        let head = Head::parse(self.get(at, RECORD)?);
        if head.is_blank() {
            return Ok(Err("nothing is written there".into()));
        }
        // Before anything of that size is allocated.
        if (head.len as u64) > rest - RECORD as u64 {
            return Ok(Err(format!(
                "record length {} is more than the {rest} bytes left in the segment",
                head.len
            )));
        }
        let place = Place {
            segment: self.segment.id,
            offset: at,
        };
        let record = self.get(at, RECORD + head.len)?;
        if !format::is_sound(record, place) {
            return Ok(Err("wrong checksum".into()));
        }
        Ok(Ok((head, &record[RECORD..])))
    }
}

/// What the first two records of a used segment tell.
struct Opening {
    /// Where the segment before it ends.
    previous_end: Place,
    session: u32,
    oldest: SegmentId,
}

fn opening(segment: &Segment) -> Result<Option<Opening>, Error> {
    if segment.bytes < (HEADER + BATCH + RECORD) as u64 {
        return Ok(None);
    }
    let mut window = Window::new(segment, OPENING_STEP);
    let (batch, session) = match window.record(HEADER as u64)? {
        Ok((head, body)) if head.kind == Kind::Batch as u8 => match format::decode(head.kind, body)
        {
            Ok(Record::Batch(batch)) => (batch, head.session),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    match window.record((HEADER + BATCH) as u64)? {
        Ok((head, body)) => match format::decode(head.kind, body) {
            Ok(Record::State(state)) => Ok(Some(Opening {
                previous_end: batch.synced,
                session,
                oldest: SegmentId(state.oldest),
            })),
            _ => Ok(None),
        },
        Err(_) => Ok(None),
    }
}

/// Replays the segments named in a log's directory; `None` where there is no log yet. `segments` are sorted.
pub(crate) fn scan(segments: Vec<Segment>, applied: Option<LogPos>) -> Result<Option<Scan>, Error> {
    let mut faults = Vec::with_capacity(segments.len());
    for segment in &segments {
        faults.push(header_fault(segment)?);
    }
    // Numbers follow each other; whatever lies below a gap was purged, as the check for the oldest one makes sure.
    let run = (1..segments.len())
        .rev()
        .find(|&at| segments[at - 1].id.next() != segments[at].id)
        .unwrap_or(0);
    let mut openings = Vec::with_capacity(segments.len());
    for (at, segment) in segments.iter().enumerate() {
        openings.push(if at < run { None } else { opening(segment)? });
    }
    let Some(used) = openings.iter().rposition(Option::is_some) else {
        return match segments.last() {
            None => Ok(None),
            // The very first start was interrupted before anything was written.
            Some(last)
                if last.id == SegmentId::FIRST
                    && later_batch(&segments, last.id, HEADER as u64, 0)?.is_none() =>
            {
                Ok(None)
            }
            Some(last) => Err(Error::damage(
                last.id,
                HEADER as u64,
                "no segment has a readable first batch",
            )),
        };
    };
    let oldest = openings
        .iter()
        .flatten()
        .map(|opening| opening.oldest)
        .max();
    let start = (run..used)
        .find(|&at| Some(segments[at].id) >= oldest)
        .unwrap_or(used);
    for (at, segment) in segments.iter().enumerate().skip(start) {
        if at <= used && openings[at].is_none() {
            return Err(Error::damage(
                segment.id,
                HEADER as u64,
                "its first batch is unreadable and later segments exist",
            ));
        }
        // A segment gets its name when all of it has been synced. What is too short has lost something since.
        if let Some(Fault { what, .. }) = faults[at]
            .as_ref()
            .filter(|fault| at <= used || fault.short)
        {
            return Err(Error::damage(
                segment.id,
                0,
                format!("its header is wrong: {what}"),
            ));
        }
    }
    let mut replay = Replay::new(segments[start].id);
    for (at, segment) in segments.iter().enumerate().take(used + 1).skip(start) {
        let next = if at < used {
            openings[at + 1].as_ref()
        } else {
            None
        };
        replay.segment(segment, next, &segments[at..])?;
    }
    // A purge after the openings were written may have let go of the one they still name; nothing else may.
    if replay.oldest < segments[start].id {
        return Err(Error::damage(replay.oldest, 0, "the file is missing"));
    }
    let mut scan = replay.finish(applied)?;
    for (at, segment) in segments.into_iter().enumerate() {
        if at < start {
            scan.retired.push(segment);
        } else if at == used + 1 && faults[at].is_none() {
            scan.next = Some(segment);
        } else if at > used {
            scan.unused.push(segment);
        }
    }
    let dead = scan
        .live
        .iter()
        .take_while(|live| live.segment.id < scan.oldest)
        .count();
    scan.retired
        .extend(scan.live.drain(..dead).map(|live| live.segment));
    Ok(Some(scan))
}

/// What is wrong with a segment's header.
struct Fault {
    what: String,
    /// The file is not as long as it was.
    short: bool,
}

/// A newer format is an error at once: nothing else can be said about it.
fn header_fault(segment: &Segment) -> Result<Option<Fault>, Error> {
    let bytes = segment.bytes;
    if bytes < format::SEGMENT_BYTES_MIN {
        return Ok(Some(Fault {
            what: format!("the file has only {bytes} bytes"),
            short: true,
        }));
    }
    let mut header = [0; HEADER];
    let read = segment.file.read_at(&mut header, 0);
    read.map_err(|e| Error::io("read log segment", segment.id.file_name(), e))?;
    let fault = |what: String| Ok(Some(Fault { what, short: false }));
    match format::check_header(&header, segment.id, bytes) {
        Ok(()) => Ok(None),
        Err(HeaderFault::Version(found)) => Err(Error::Version {
            segment: segment.id,
            found,
            supported: format::VERSION,
        }),
        Err(HeaderFault::Magic) => fault("it is not that of a log segment".into()),
        Err(HeaderFault::Checksum) => fault("wrong checksum".into()),
        Err(HeaderFault::Id(id)) => fault(format!("it belongs to segment {}", SegmentId(id))),
        Err(HeaderFault::Bytes(made)) => {
            let what = format!("the segment was made with {made} bytes, the file has {bytes}");
            Ok(Some(Fault { what, short: true }))
        }
    }
}

/// A batch that shows that something before it was synced.
struct Later {
    at: Place,
    synced: Place,
}

/// A batch in the segments, after `(segment, offset)`, that was written when that place was known to be synced.
fn later_batch(
    segments: &[Segment],
    segment: SegmentId,
    offset: u64,
    session: u32,
) -> Result<Option<Later>, Error> {
    let bad = Place { segment, offset };
    for segment in segments.iter().filter(|s| s.id >= bad.segment) {
        let mut window = Window::new(segment, STEP);
        let mut at = if segment.id == bad.segment {
            (offset + 8).max(HEADER as u64)
        } else {
            HEADER as u64
        };
        while at + BATCH as u64 <= segment.bytes {
            let head = Head::parse(window.get(at, RECORD)?);
            if head.kind == Kind::Batch as u8
                && head.len == format::BATCH_BODY
                && head.session >= session
                && let Ok((head, body)) = window.record(at)?
                && let Ok(Record::Batch(batch)) = format::decode(head.kind, body)
                && batch.synced > bad
            {
                return Ok(Some(Later {
                    at: Place {
                        segment: segment.id,
                        offset: at,
                    },
                    synced: batch.synced,
                }));
            }
            at += 8;
        }
    }
    Ok(None)
}

/// The batch that is being replayed.
#[derive(Clone, Copy)]
struct Extent {
    start: u64,
    end: u64,
    records_left: u32,
}

struct Replay {
    log: Log,
    vote: Option<Bytes>,
    committed: Option<LogPos>,
    oldest: SegmentId,
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
    fn new(first: SegmentId) -> Self {
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
    fn segment(
        &mut self,
        segment: &Segment,
        next: Option<&Opening>,
        rest: &[Segment],
    ) -> Result<(), Error> {
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
                    Ok((head, _)) if head.session < self.session => {
                        "a left-over from before a restart".to_owned()
                    }
                    Ok((head, body)) => {
                        let damage = |what: String| Error::damage(id, at, what);
                        let record = format::decode(head.kind, body).map_err(damage)?;
                        let place = Place {
                            segment: id,
                            offset: at,
                        };
                        let bytes = record_bytes(head.len) as u64;
                        self.extent(
                            &mut extent,
                            place,
                            segment.bytes,
                            head.session,
                            &record,
                            bytes,
                        )
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
                let known = self
                    .log
                    .term_at(last.index)
                    .is_none_or(|term| term == last.term);
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
                return Err(
                    "the state told here differs from what the segments before it tell".into(),
                );
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
        if self
            .live
            .last()
            .is_some_and(|live| live.segment.id < oldest)
        {
            return Err(format!(
                "the oldest segment needed is said to be {oldest}, which is still to come"
            ));
        }
        self.oldest = self.oldest.max(oldest);
        Ok(())
    }

    fn finish(self, applied: Option<LogPos>) -> Result<Scan, Error> {
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

/// The log has, or has purged, the entry at `pos`.
pub(crate) fn check_reaches(log: &Log, pos: Option<LogPos>, what: &str) -> Result<(), String> {
    let Some(pos) = pos else { return Ok(()) };
    let last = log.last();
    if last.is_none_or(|last| last.index < pos.index) {
        let last = last.map_or("nothing".to_owned(), |last| last.to_string());
        return Err(format!(
            "the log ends with {last}, and {pos} (term/index) is known to be {what}"
        ));
    }
    match log.term_at(pos.index) {
        Some(term) if term != pos.term => Err(format!(
            "the log has term {term} at index {}, and {pos} (term/index) is known to be {what}",
            pos.index
        )),
        _ => Ok(()),
    }
}
