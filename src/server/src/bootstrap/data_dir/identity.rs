//! `identity.json`: who this member is.

use super::Error;
use quorate_api::{ClusterId, MemberId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(super) const FORMAT: u32 = 1;

/// Who this member is. It never changes for as long as its data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// Random, made with the directory: tells a wiped member from the one that lost its disk.
    pub incarnation: u64,
    /// The log was there once, so that an empty place for it is none to start a new one in.
    pub log_made: bool,
}

/// Read before the rest: a newer format may have other fields.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: String,
    member_id: String,
    incarnation: String,
    #[serde(default)]
    log_made: bool,
}

pub(super) fn read(path: &Path) -> Result<Option<Identity>, Error> {
    let raw = match fs::read(path) {
        Ok(raw) => raw,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let damaged = |reason: String| Error::Damaged {
        path: path.to_path_buf(),
        reason,
    };
    let Versioned { format } = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(Error::Newer {
            path: path.to_path_buf(),
            found: format,
        });
    }
    let IdentityFile {
        format: _,
        cluster_id,
        member_id,
        incarnation,
        log_made,
    } = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| damaged(format!("{text:?}: {error}")));
    Ok(Some(Identity {
        cluster: ClusterId(hex(&cluster_id)?),
        member: MemberId(hex(&member_id)?),
        incarnation: hex(&incarnation)?,
        log_made,
    }))
}

pub(super) fn write(path: &Path, identity: Identity) -> Result<(), Error> {
    let Identity {
        cluster,
        member,
        incarnation,
        log_made,
    } = identity;
    let file = IdentityFile {
        format: FORMAT,
        cluster_id: cluster.to_string(),
        member_id: member.to_string(),
        incarnation: format!("{incarnation:x}"),
        log_made,
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
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(Error::io("write", path))
}
