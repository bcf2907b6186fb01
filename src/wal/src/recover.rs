//! Finding the files of a log and getting them into the state that writing can go on from.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, File};
use crate::format::HEADER;
use crate::owner::Owner;
use crate::prepare::{Fresh, Preparer, Spare};
use crate::scan::{self, Live, Scan, Segment};
use crate::segment::{self, Name, SegmentId};
use crate::{Error, LogPos, Options};

/// What lies in a log's directory.
#[derive(Debug, Default)]
struct Files {
    segments: Vec<Segment>,
    spares: Vec<SegmentId>,
    unfinished: bool,
}

type Open = fn(&dyn Disk, &Path) -> io::Result<Arc<dyn File>>;

fn list(disk: &dyn Disk, dir: &Path, open: Open) -> Result<Files, Error> {
    let mut files = Files::default();
    let mut segments = BTreeMap::new();
    for name in disk.list(dir).map_err(|e| Error::io("list log directory", dir, e))? {
        match segment::parse(&name) {
            Name::Segment(id) => {
                segments.insert(id, dir.join(name));
            }
            Name::Spare(id) => files.spares.push(id),
            Name::Unfinished => files.unfinished = true,
            Name::Foreign => {}
        }
    }
    for (id, path) in segments {
        let file = open(disk, &path).map_err(|e| Error::io("open log segment", &path, e))?;
        let bytes = file
            .len()
            .map_err(|e| Error::io("read length of log segment", &path, e))?;
        files.segments.push(Segment { id, bytes, file });
    }
    Ok(files)
}

/// Reads the log in `dir` without changing anything.
pub(crate) fn inspect(disk: &dyn Disk, dir: &Path, applied: Option<LogPos>) -> Result<Option<Scan>, Error> {
    let files = list(disk, dir, |disk, path| disk.open_read(path))?;
    scan::scan(files.segments, &mut Owner::new(dir, 0), applied)
}

/// Opens or founds the log: afterwards its names are durable, leftovers are gone, and spares are in the hands of
/// `preparer`. The end of the log has not been touched yet, so the segments that are no longer needed are still there:
/// the purge that says so may have been read from the page cache alone. A new log comes without a scan, with its first
/// segment.
pub(crate) fn recover(disk: &Arc<dyn Disk>, options: &Options, preparer: &Preparer) -> Result<Scan, Error> {
    let dir = &options.dir;
    make_dir(disk.as_ref(), dir)?;
    let files = list(disk.as_ref(), dir, |disk, path| disk.open(path))?;
    let mut owner = Owner::new(dir, options.owner);
    let found = scan::scan(files.segments, &mut owner, options.applied)?;
    let remove = |name: String| {
        let path = dir.join(name);
        disk.remove(&path)
            .map_err(|e| Error::io("remove log leftover", path, e))
    };
    if files.unfinished {
        remove(segment::UNFINISHED.to_owned())?;
    }
    let mut spares = Vec::new();
    for id in files.spares {
        let path = dir.join(segment::spare_name(id));
        // Of a log that is gone: in a new one, which counts from 1 again, its records could look alive.
        let mut keep = found.is_some() && spares.len() < options.spare_segments;
        if keep {
            let bytes = spare_bytes(disk.as_ref(), &path, id, &mut owner)?;
            keep = bytes == Some(options.segment_bytes);
        }
        if keep {
            let bytes = options.segment_bytes;
            spares.push(Spare { id, bytes });
        } else {
            remove(segment::spare_name(id))?;
        }
    }
    let Some(mut scan) = found else {
        scan::check_reaches(&Default::default(), options.applied, "applied")
            .map_err(|what| Error::damage(SegmentId::FIRST, 0, what))?;
        disk.sync_dir(dir)
            .map_err(|e| Error::io("sync log directory", dir, e))?;
        preparer.adopt(Vec::new(), None, owner.number());
        let fresh = preparer.make_first()?;
        return Ok(Scan::of_new_log(fresh.into()));
    };
    for unused in scan.unused.drain(..) {
        remove(unused.id.file_name())?;
    }
    disk.sync_dir(dir)
        .map_err(|e| Error::io("sync log directory", dir, e))?;
    let ready = scan
        .next
        .take()
        .map(|Segment { id, bytes, file }| Fresh { id, bytes, file });
    preparer.adopt(spares, ready, owner.number());
    Ok(scan)
}

/// Makes the directory, and each new name on the way to it durable.
fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    let parents = || dir.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    let missing = |dir: &Path| matches!(disk.list(dir), Err(e) if e.kind() == io::ErrorKind::NotFound);
    // The parent is always synced: an earlier start may have ended between making the directory and that.
    let made = 1 + parents().take_while(|parent| missing(parent)).count();
    disk.create_dir_all(dir)
        .map_err(|e| Error::io("create log directory", dir, e))?;
    for parent in parents().take(made) {
        disk.sync_dir(parent)
            .map_err(|e| Error::io("sync directory", parent, e))?;
    }
    Ok(())
}

/// Length of a spare that can be put to use; `None` if its header does not even tell whose it is.
fn spare_bytes(disk: &dyn Disk, path: &Path, id: SegmentId, owner: &mut Owner<'_>) -> Result<Option<u64>, Error> {
    let failed = |e| Error::io("read spare log segment", path, e);
    let file = disk.open(path).map_err(failed)?;
    let bytes = file.len().map_err(failed)?;
    if bytes < HEADER as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    file.read_at(&mut header, 0).map_err(failed)?;
    Ok(owner.check(id, &header)?.then_some(bytes))
}

impl From<Fresh> for Live {
    fn from(Fresh { id, bytes, file }: Fresh) -> Self {
        Self {
            segment: Segment { id, bytes, file },
            max_index: None,
        }
    }
}
