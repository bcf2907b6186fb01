//! Reading a whole log back: what it says, where it ends, and whether that end can be believed.
//!
//! A scan only reads. It replays the records in order; the first one that can't be right is either the torn tail of a
//! batch that was never acknowledged, or damage. It is damage when something written later shows that the place had
//! been synced: a later batch that says so, a later segment, the committed position or the backend's applied one.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::File;
use crate::entry::LogPos;
use crate::format::{self, BATCH, HEADER, Head, HeaderFault, Kind, RECORD, Record};
use crate::log::Log;
use crate::owner::Owner;
use crate::segment::{Place, SegmentId};
use crate::{Error, Torn};

mod replay;
mod window;

use replay::Replay;
use window::Window;

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
/// No batch begins in this: its length is never zero. Most of what follows the end of a log is like that.
static BLANK: [u8; 4 << 10] = [0; 4 << 10];

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
    // What has a right checksum was written here, and nothing else can have been.
    let wrong = |offset: usize, what: String| Error::damage(segment.id, offset as u64, what);
    let Ok((head, body)) = window.record(HEADER as u64)? else {
        return Ok(None);
    };
    let (batch, session) = match format::decode(head.kind, body).map_err(|what| wrong(HEADER, what))? {
        Record::Batch(batch) => (batch, head.session),
        other => return Err(wrong(HEADER, format!("a {:?} record begins the segment", other.kind()))),
    };
    let second = HEADER + BATCH;
    let Ok((head, body)) = window.record(second as u64)? else {
        return Ok(None);
    };
    match format::decode(head.kind, body).map_err(|what| wrong(second, what))? {
        Record::State(state) => Ok(Some(Opening {
            previous_end: batch.synced,
            session,
            oldest: SegmentId(state.oldest),
        })),
        other => Err(wrong(
            second,
            format!("a {:?} record where the state should be", other.kind()),
        )),
    }
}

/// Replays the segments named in a log's directory; `None` where there is no log yet. `segments` are sorted.
pub(crate) fn scan(
    segments: Vec<Segment>,
    owner: &mut Owner<'_>,
    applied: Option<LogPos>,
) -> Result<Option<Scan>, Error> {
    let mut faults = Vec::with_capacity(segments.len());
    for segment in &segments {
        faults.push(header_fault(segment, owner)?);
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
                if last.id == SegmentId::FIRST && later_batch(&segments, last.id, HEADER as u64, 0)?.is_none() =>
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
    let oldest = openings.iter().flatten().map(|opening| opening.oldest).max();
    let start = (run..used).find(|&at| Some(segments[at].id) >= oldest).unwrap_or(used);
    for (at, segment) in segments.iter().enumerate().skip(start) {
        if at <= used && openings[at].is_none() {
            return Err(Error::damage(
                segment.id,
                HEADER as u64,
                "its first batch is unreadable and later segments exist",
            ));
        }
        // A segment gets its name when all of it has been synced. What is too short has lost something since.
        if let Some(Fault { what, .. }) = faults[at].as_ref().filter(|fault| at <= used || fault.short) {
            return Err(Error::damage(segment.id, 0, format!("its header is wrong: {what}")));
        }
    }
    let mut replay = Replay::new(segments[start].id);
    for (at, segment) in segments.iter().enumerate().take(used + 1).skip(start) {
        let next = if at < used { openings[at + 1].as_ref() } else { None };
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
    scan.retired.extend(scan.live.drain(..dead).map(|live| live.segment));
    Ok(Some(scan))
}

/// What is wrong with a segment's header.
struct Fault {
    what: String,
    /// The file is not as long as it was.
    short: bool,
}

/// A newer format is an error at once: nothing else can be said about it. So is another owner: nothing else matters.
fn header_fault(segment: &Segment, owner: &mut Owner<'_>) -> Result<Option<Fault>, Error> {
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
    owner.check(segment.id, &header)?;
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
fn later_batch(segments: &[Segment], segment: SegmentId, offset: u64, session: u32) -> Result<Option<Later>, Error> {
    let bad = Place { segment, offset };
    for segment in segments.iter().filter(|s| s.id >= bad.segment) {
        let mut window = Window::new(segment, STEP);
        let mut at = if segment.id == bad.segment {
            (offset + 8).max(HEADER as u64)
        } else {
            HEADER as u64
        };
        while at + BATCH as u64 <= segment.bytes {
            if at.is_multiple_of(BLANK.len() as u64) {
                at = window.skip_blank(at, &BLANK)?;
                if at + BATCH as u64 > segment.bytes {
                    break;
                }
            }
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
