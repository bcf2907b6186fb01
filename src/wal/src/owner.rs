//! Whose files these are: all of one owner's, or the log is refused before anything in it is believed.

use std::path::Path;

use crate::Error;
use crate::format::{self, HEADER};
use crate::segment::SegmentId;

/// The owner that all headers in a directory have to name.
#[derive(Debug)]
pub(crate) struct Owner<'a> {
    dir: &'a Path,
    /// Whoever the first sound header names, where the caller does not say.
    expected: Option<u64>,
}

impl<'a> Owner<'a> {
    /// `owner` 0 is whoever the files belong to.
    pub(crate) fn new(dir: &'a Path, owner: u64) -> Self {
        Self {
            dir,
            expected: (owner != 0).then_some(owner),
        }
    }

    /// Looks at one file's header. One that can't be believed tells nothing here; false then.
    pub(crate) fn check(&mut self, segment: SegmentId, header: &[u8; HEADER]) -> Result<bool, Error> {
        let Some(found) = format::header_owner(header) else {
            return Ok(false);
        };
        let expected = *self.expected.get_or_insert(found);
        if found != expected {
            return Err(Error::Owner {
                dir: self.dir.to_path_buf(),
                segment,
                found,
                expected,
            });
        }
        Ok(true)
    }

    /// For the headers of new segments.
    pub(crate) fn number(&self) -> u64 {
        self.expected.unwrap_or(0)
    }
}
