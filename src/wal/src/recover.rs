//! Finding the files of a log and getting them into the state that writing can go on from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::disk::Disk;
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

fn list(disk: &dyn Disk, dir: &Path) -> Result<Files, Error> {
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
        let file = disk.open(&path).map_err(|e| Error::io("open log segment", &path, e))?;
        let bytes = file
            .len()
            .map_err(|e| Error::io("read length of log segment", &path, e))?;
        files.segments.push(Segment { id, bytes, file });
    }
    Ok(files)
}

/// Reads the log in `dir` without changing anything.
pub(crate) fn inspect(disk: &dyn Disk, dir: &Path, applied: Option<LogPos>) -> Result<Option<Scan>, Error> {
    scan::scan(list(disk, dir)?.segments, applied)
}

/// Opens or founds the log: afterwards its names are durable, leftovers are gone, and what purged segments there were
/// are in the hands of `preparer`. The end of the log has not been touched yet. A new log comes without a scan, with
/// its first segment.
pub(crate) fn recover(disk: &Arc<dyn Disk>, options: &Options, preparer: &Preparer) -> Result<Scan, Error> {
    let dir = &options.dir;
    disk.create_dir_all(dir)
        .map_err(|e| Error::io("create log directory", dir, e))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)
            .map_err(|e| Error::io("sync directory", parent, e))?;
    }
    let files = list(disk.as_ref(), dir)?;
    let found = scan::scan(files.segments, options.applied)?;
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
        let bytes = disk
            .open(&path)
            .and_then(|file| file.len())
            .map_err(|e| Error::io("open spare log segment", &path, e))?;
        if bytes == options.segment_bytes && spares.len() < options.spare_segments {
            spares.push(Spare { id, bytes });
        } else {
            remove(segment::spare_name(id))?;
        }
    }
    let Some(mut scan) = found else {
        scan::check_reaches(&Default::default(), options.applied, "applied")
            .map_err(|what| Error::damage(SegmentId::FIRST, 0, what))?;
        preparer.adopt(spares, None);
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
    preparer.adopt(spares, ready);
    preparer.free(
        scan.retired
            .drain(..)
            .map(|Segment { id, bytes, .. }| Spare { id, bytes })
            .collect(),
    );
    Ok(scan)
}

impl From<Fresh> for Live {
    fn from(Fresh { id, bytes, file }: Fresh) -> Self {
        Self {
            segment: Segment { id, bytes, file },
            max_index: None,
        }
    }
}
