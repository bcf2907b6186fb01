//! The data directory: looked at, made, checked and locked before anything in it is opened.
//!
//! ```text
//! <data-dir>/            0700
//!   lock                 held by the running process
//!   member/
//!     boot               how often it was started
//!     identity.json      who this member is; written once, before anything else, and marked once the log is there
//!     wal/               the log (or --wal-dir)
//!       wal.lock         held by the running process
//!     store.redb         the backend
//! ```
//!
//! Looking comes first and changes nothing: what belongs to somebody else is refused as it was found.

mod boot;
mod durable;
mod identity;
mod lock;
mod private;

use quorate_api::MemberId;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use identity::{Origin, Record};

/// Why a data directory can't be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} belongs to user {owner}, and this process runs as user {user}: start it as the owner or change the owner",
        path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "{} holds data of etcd, which Quorate does not read in place: give an empty --data-dir and --wal-dir",
        path.display()
    )]
    Foreign { path: PathBuf },
    #[error(
        "{} is of format {found} and this version reads up to {}: start the newer version that wrote it",
        path.display(),
        identity::FORMAT
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} can't be read: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{} is gone, but there is data beside it: without its identity this member can't be told from another. Restore \
         the file, or remove the member, wipe the directory and add it again",
        path.display()
    )]
    IdentityLost { path: PathBuf },
    #[error("the log of member {member} is not in {}: was --wal-dir given before?", path.display())]
    LogMissing { member: MemberId, path: PathBuf },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// Where a member's files lie, in a directory that may not exist yet.
#[derive(Clone, Debug)]
struct Places {
    root: PathBuf,
    member: PathBuf,
    boot: PathBuf,
    identity: PathBuf,
    store: PathBuf,
    wal: PathBuf,
}

impl Places {
    fn new(root: &Path, wal_dir: Option<&Path>) -> Self {
        let member = root.join("member");
        Self {
            root: root.to_path_buf(),
            boot: member.join("boot"),
            identity: member.join("identity.json"),
            store: member.join("store.redb"),
            wal: wal_dir.map_or_else(|| member.join("wal"), Path::to_path_buf),
            member,
        }
    }

    /// Refuses what belongs to somebody else. Reads only.
    fn check(&self) -> Result<(), Error> {
        for dir in [&self.root, &self.member, &self.wal] {
            private::check_owner(dir)?;
        }
        self.refuse_etcd()
    }

    /// etcd keeps `member/snap/db` (bbolt) and names its log segments `<16 hex>-<16 hex>.wal`.
    fn refuse_etcd(&self) -> Result<(), Error> {
        let db = self.member.join("snap/db");
        if db.exists() {
            return Err(Error::Foreign { path: db });
        }
        let is_segment = |name: &str| {
            let stem = name.strip_suffix(".wal").and_then(|stem| stem.split_once('-'));
            let hex = |part: &str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            stem.is_some_and(|(sequence, index)| hex(sequence) && hex(index))
        };
        match entries(&self.wal)?.into_iter().find(|name| is_segment(name)) {
            Some(name) => Err(Error::Foreign {
                path: self.wal.join(name),
            }),
            None => Ok(()),
        }
    }

    fn has_log(&self) -> Result<bool, Error> {
        Ok(entries(&self.wal)?.iter().any(|name| is_log_file(name)))
    }

    fn holds_data(&self) -> Result<bool, Error> {
        Ok(self.identity.exists() || self.store.exists() || self.has_log()?)
    }

    /// `None` when there is no data. A member whose log was made and is not where it should be is refused: without it,
    /// it would forget what it acknowledged.
    fn record(&self) -> Result<Option<Record>, Error> {
        match identity::read(&self.identity)? {
            Some(record) if record.log_made && !self.has_log()? => Err(Error::LogMissing {
                member: record.member,
                path: self.wal.clone(),
            }),
            Some(record) => Ok(Some(record)),
            None if self.holds_data()? => Err(Error::IdentityLost {
                path: self.identity.clone(),
            }),
            None => Ok(None),
        }
    }
}

fn is_log_file(name: &str) -> bool {
    name.ends_with(".wal") || name.ends_with(".spare")
}

/// Names in a directory; none when it does not exist.
fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let names = match std::fs::read_dir(dir) {
        Ok(found) => found
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    names.map_err(Error::io("list", dir))
}

/// A directory that is this process's own until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    places: Places,
    _locks: [File; 2],
}

impl DataDir {
    /// Whether no member has lived there: no identity, no store, no log. Changes nothing, and refuses what
    /// [`Self::open`] would refuse.
    pub fn is_new(root: &Path, wal_dir: Option<&Path>) -> Result<bool, Error> {
        let places = Places::new(root, wal_dir);
        places.check()?;
        Ok(places.record()?.is_none())
    }

    /// Makes what is missing and takes the locks, waiting for another process to end if need be. What is there already
    /// is tightened if it is a member's.
    pub fn open(root: &Path, wal_dir: Option<&Path>) -> Result<Self, Error> {
        let places = Places::new(root, wal_dir);
        places.check()?;
        private::make_dir(root, places.holds_data()?, |name| {
            matches!(name, "lock" | "member" | "fixtures")
        })?;
        private::warn_of_parent(root);
        let lock = lock::take(&root.join("lock"), "data directory")?;
        // The process that held the lock may have made the rest.
        places.check()?;
        places.record()?;
        let holds_data = places.holds_data()?;
        let of_member = |name: &str| {
            ["boot", "identity.json", "store.redb"]
                .iter()
                .any(|file| name.starts_with(file))
        };
        private::make_dir(&places.member, holds_data, |name| name == "wal" || of_member(name))?;
        private::make_dir(&places.wal, false, |name| is_log_file(name) || name == lock::WAL)?;
        let wal_lock = lock::take(&places.wal.join(lock::WAL), "wal directory")?;
        for (dir, ours) in [
            (&places.member, &of_member as &dyn Fn(&str) -> bool),
            (&places.wal, &is_log_file),
        ] {
            for name in entries(dir)?.iter().filter(|name| ours(name)) {
                private::tighten_file(&dir.join(name))?;
            }
        }
        Ok(Self {
            places,
            _locks: [lock, wal_lock],
        })
    }

    /// Whether a member has lived there, to say so before anything is touched.
    pub fn is_initialized(root: &Path) -> bool {
        Places::new(root, None).identity.exists()
    }

    pub fn wal(&self) -> &Path {
        &self.places.wal
    }

    pub fn store(&self) -> PathBuf {
        self.places.store.clone()
    }

    /// What was written when the member was first started; `None` for a new member.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        self.places.record()
    }

    /// Writes who this member is, durably, before it has any data.
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        identity::write(&self.places.identity, record)
    }

    /// Counts this start, durably, before the member does anything that others hear of. The first is 1. `again`: the
    /// member was started before by a version that counts.
    pub fn count_boot(&self, again: bool) -> Result<u64, Error> {
        boot::count(&self.places.boot, again)
    }

    /// Notes, once and durably, that the log is there: from now on an empty place for it is refused.
    pub fn mark_log_made(&self) -> Result<(), Error> {
        match self.places.record()? {
            Some(record) if !record.log_made => self.write_record(&Record {
                log_made: true,
                ..record
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
