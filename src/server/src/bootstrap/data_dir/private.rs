//! Directories and files for the eyes of their owner only: 0700 and 0600, made so and tightened again at each start,
//! since a volume mounted with a group set is often widened each time.

use super::{Error, entries};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use tracing::warn;

const OTHERS: u32 = 0o077;

/// Refuses what another user owns; there may be nothing yet. Root may use everybody's.
pub(super) fn check_owner(path: &Path) -> Result<(), Error> {
    check_owner_for(rustix::process::geteuid().as_raw(), path)
}

pub(super) fn check_owner_for(user: u32, path: &Path) -> Result<(), Error> {
    let owner = match fs::metadata(path) {
        Ok(metadata) => metadata.uid(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("inspect", path)(error)),
    };
    if owner != user && user != 0 {
        return Err(Error::Owner {
            path: path.to_path_buf(),
            owner,
            user,
        });
    }
    Ok(())
}

/// Makes a directory with mode 0700, or tightens one that is there and is a member's: because it is `known` to be, or
/// because all that it holds are names that are `ours`. Somebody's `/tmp` stays as it is.
pub(super) fn make_dir(path: &Path, known: bool, ours: impl Fn(&str) -> bool) -> Result<(), Error> {
    if !path.exists() {
        return create_durably(path);
    }
    let mode = mode(path)?;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    let shown = path.display();
    // A fresh file system has a folder of its own at its root.
    if !known && !entries(path)?.iter().all(|name| name == "lost+found" || ours(name)) {
        warn!(path = %shown, mode = format_args!("{mode:o}"), "directory is open to others and not only a member's; left as it is");
        return Ok(());
    }
    warn!(path = %shown, mode = format_args!("{mode:o}"), "directory was open to others; now 0700");
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(Error::io("restrict to 0700", path))
}

/// A directory is there after a crash once the one above it is synced, and so on up.
fn create_durably(path: &Path) -> Result<(), Error> {
    let above = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    if !above.exists() {
        create_durably(above)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io("create directory", path))?,
    }
    let synced = File::open(above).and_then(|above| above.sync_all());
    synced.map_err(Error::io("sync directory", above))
}

/// Takes a file from others' reach; there may be none yet.
pub(super) fn tighten_file(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    check_owner(path)?;
    let mode = mode(path)?;
    if mode & OTHERS != 0 {
        warn!(path = %path.display(), mode = format_args!("{mode:o}"), "file was open to others; now 0600");
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(Error::io("restrict to 0600", path))?;
    }
    Ok(())
}

/// Whoever may rename in the directory above can put another in our place. That is for its owner to mend.
pub(super) fn warn_of_parent(path: &Path) {
    let Some(parent) = fs::canonicalize(path)
        .ok()
        .and_then(|path| Some(path.parent()?.to_path_buf()))
    else {
        return;
    };
    let is_wide = |mode: u32| mode & 0o022 != 0 && mode & 0o1000 == 0;
    if let Ok(mode) = mode(&parent).map(|mode| mode & 0o7777)
        && is_wide(mode)
    {
        warn!(path = %parent.display(), mode = format_args!("{mode:o}"), "others may rename the data directory: the one above it is open to them");
    }
}

fn mode(path: &Path) -> Result<u32, Error> {
    let metadata = fs::metadata(path).map_err(Error::io("inspect", path))?;
    Ok(metadata.permissions().mode() & 0o7777)
}
