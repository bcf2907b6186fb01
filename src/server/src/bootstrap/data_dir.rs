//! The data directory: made, checked and locked before anything in it is opened.
//!
//! ```text
//! <data-dir>/            0700
//!   lock                 held by the running process
//!   member/
//!     identity.json      who this member is; written once, before anything else
//!     wal/               the log (or --wal-dir)
//!     store.redb         the backend
//! ```

use quorate_api::{ClusterId, MemberId};
use rustix::fs::{FlockOperation, Mode, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};

const IDENTITY_FORMAT: u32 = 1;

/// How often a process that waits for the lock says so.
const LOCK_NOTICE: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(200);

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
        "data directory {} belongs to user {owner}, and this process runs as user {user}: start it as the owner or \
         change the owner of the directory",
        path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "{} holds data of etcd, which Quorate does not read in place: give an empty --data-dir",
        path.display()
    )]
    Foreign { path: PathBuf },
    #[error(
        "{} is of format {found} and this version reads up to {IDENTITY_FORMAT}: start the newer version that wrote it",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} can't be read as a member's identity: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{} is gone, but there is data beside it: without its identity this member can't be told from another. Restore \
         the file, or remove the member, wipe the directory and add it again",
        path.display()
    )]
    IdentityLost { path: PathBuf },
}

/// Who this member is. It never changes for as long as its data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// Random, made with the directory: tells a wiped member from the one that lost its disk.
    pub incarnation: u64,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: String,
    member_id: String,
    incarnation: String,
}

/// A directory that is this process's own until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    wal: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes what is missing, checks what is there, and takes the lock, waiting for another process to end if need be.
    pub fn open(root: &Path, wal_dir: Option<&Path>) -> Result<Self, Error> {
        make_private(root)?;
        check_owner(root)?;
        refuse_foreign(root)?;
        let lock = lock(&root.join("lock"))?;
        make_private(&root.join("member"))?;
        let wal = wal_dir.map_or_else(|| root.join("member/wal"), Path::to_path_buf);
        make_private(&wal)?;
        Ok(Self {
            root: root.to_path_buf(),
            wal,
            _lock: lock,
        })
    }

    /// Whether a member has lived there, to say so before anything is touched.
    pub fn is_initialized(root: &Path) -> bool {
        root.join("member/identity.json").exists()
    }

    pub fn wal(&self) -> &Path {
        &self.wal
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("member/store.redb")
    }

    fn identity_path(&self) -> PathBuf {
        self.root.join("member/identity.json")
    }

    /// The identity that was written when the member was first started; `None` for a new member.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let path = self.identity_path();
        let raw = match fs::read(&path) {
            Ok(raw) => raw,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.store().exists() || !is_empty(&self.wal)? {
                    return Err(Error::IdentityLost { path });
                }
                return Ok(None);
            }
            Err(source) => {
                return Err(Error::Io {
                    doing: "read",
                    path,
                    source,
                });
            }
        };
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let file: IdentityFile = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
        if file.format > IDENTITY_FORMAT {
            return Err(Error::Newer {
                path,
                found: file.format,
            });
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| damaged(format!("{text:?}: {error}")));
        Ok(Some(Identity {
            cluster: ClusterId(hex(&file.cluster_id)?),
            member: MemberId(hex(&file.member_id)?),
            incarnation: hex(&file.incarnation)?,
        }))
    }

    /// Writes the identity of a new member, durably, before it has any data.
    pub fn write_identity(&self, identity: Identity) -> Result<(), Error> {
        let path = self.identity_path();
        let file = IdentityFile {
            format: IDENTITY_FORMAT,
            cluster_id: identity.cluster.to_string(),
            member_id: identity.member.to_string(),
            incarnation: format!("{:x}", identity.incarnation),
        };
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("json.tmp");
            let mut out = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            out.write_all(&serde_json::to_vec_pretty(&file)?)?;
            out.sync_all()?;
            fs::rename(&temporary, &path)?;
            // A directory entry is durable once its directory is synced, and so on up to the root we made.
            File::open(self.root.join("member"))?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|source| Error::Io {
            doing: "write",
            path: path.clone(),
            source,
        })
    }
}

/// Makes a directory for our eyes only, or tightens one that is there: a volume mounted with a group set is often
/// widened at each start.
fn make_private(path: &Path) -> Result<(), Error> {
    let io = |doing| {
        move |source| Error::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("create directory"))?;
    let mode = fs::metadata(path).map_err(io("inspect"))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        warn!(path = %path.display(), mode = format_args!("{mode:o}"), "directory was open to others; now 0700");
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("restrict to 0700"))?;
    }
    Ok(())
}

fn check_owner(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Io {
        doing: "inspect",
        path: path.to_path_buf(),
        source,
    })?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && user != 0 {
        return Err(Error::Owner {
            path: path.to_path_buf(),
            owner: metadata.uid(),
            user,
        });
    }
    Ok(())
}

/// etcd keeps `member/snap/db` (bbolt) and names its log segments `<16 hex>-<16 hex>.wal`.
fn refuse_foreign(root: &Path) -> Result<(), Error> {
    let db = root.join("member/snap/db");
    if db.exists() {
        return Err(Error::Foreign { path: db });
    }
    Ok(())
}

fn is_empty(path: &Path) -> Result<bool, Error> {
    let mut entries = fs::read_dir(path).map_err(|source| Error::Io {
        doing: "list",
        path: path.to_path_buf(),
        source,
    })?;
    Ok(entries.next().is_none())
}

/// As etcd does, waits for as long as it takes and says so: the other process is usually the one that is being
/// replaced.
fn lock(path: &Path) -> Result<File, Error> {
    let io = |doing| {
        move |source| Error::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    };
    let file = rustix::fs::open(
        path,
        rustix::fs::OFlags::CREATE
            | rustix::fs::OFlags::RDWR
            | rustix::fs::OFlags::CLOEXEC
            | rustix::fs::OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    );
    let file = File::from(file.map_err(|error| io("open lock file")(error.into()))?);
    let mut waited = Duration::ZERO;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(io("lock")(error.into())),
        }
        if waited.is_zero() || waited.as_millis().is_multiple_of(LOCK_NOTICE.as_millis()) {
            warn!(path = %path.display(), "data directory is locked by another process; waiting for it to end");
        }
        std::thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
    if !waited.is_zero() {
        info!(path = %path.display(), waited = ?waited, "data directory is free");
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        cluster: ClusterId(0xc1),
        member: MemberId(0x8e9),
        incarnation: 7,
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// A3
    #[test]
    fn data_dir_modes_are_checked_at_start() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("data");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o775)).unwrap();
        let dir = DataDir::open(&root, None).unwrap();
        dir.write_identity(IDENTITY).unwrap();
        assert_eq!((mode(&root), mode(dir.wal())), (0o700, 0o700));
        assert_eq!((mode(&dir.identity_path()), mode(&root.join("lock"))), (0o600, 0o600));
    }

    #[test]
    fn identity_is_read_back_and_its_loss_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path(), None).unwrap();
        assert_eq!(dir.identity().unwrap(), None);
        dir.write_identity(IDENTITY).unwrap();
        assert_eq!(dir.identity().unwrap(), Some(IDENTITY));

        fs::write(dir.store(), b"data").unwrap();
        fs::remove_file(dir.identity_path()).unwrap();
        assert!(matches!(dir.identity(), Err(Error::IdentityLost { .. })));
    }

    #[test]
    fn a_newer_or_damaged_identity_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path(), None).unwrap();
        dir.write_identity(IDENTITY).unwrap();
        let newer = r#"{"format": 9, "cluster_id": "1", "member_id": "2", "incarnation": "3"}"#;
        fs::write(dir.identity_path(), newer).unwrap();
        assert!(matches!(dir.identity(), Err(Error::Newer { found: 9, .. })));
        fs::write(dir.identity_path(), "{").unwrap();
        assert!(matches!(dir.identity(), Err(Error::Damaged { .. })));
    }

    #[test]
    fn data_of_etcd_is_not_touched() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("member/snap")).unwrap();
        fs::write(temp.path().join("member/snap/db"), b"bbolt").unwrap();
        assert!(matches!(DataDir::open(temp.path(), None), Err(Error::Foreign { .. })));
    }

    #[test]
    fn a_second_process_waits_for_the_lock() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path(), None).unwrap();
        let path = temp.path().to_path_buf();
        let second = std::thread::spawn(move || DataDir::open(&path, None).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}
