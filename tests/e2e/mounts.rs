//! File systems of a test's own. They need CAP_SYS_ADMIN: root, or a container started with it.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

const NEEDS: &str = "this test mounts file systems and needs CAP_SYS_ADMIN: run it as root, in a container with \
                     --cap-add=SYS_ADMIN";

/// A small file system, gone when dropped.
pub struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    pub fn mount(at: &'a Path, mib: u32) -> Self {
        let size = format!("size={mib}m,mode=700");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output()
            .unwrap();
        assert_mounted(&done);
        Self(at)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        // lazily: a server that is only just being killed may still hold it
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn assert_mounted(done: &Output) {
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{NEEDS} (mount said: {})", why.trim_end());
}

/// A file system on a file, whose writes can be made to hang. Gone when dropped. It needs loop devices as well.
pub struct Freezable<'a> {
    at: &'a Path,
    frozen: std::cell::Cell<bool>,
}

impl<'a> Freezable<'a> {
    pub fn mount(file: &Path, at: &'a Path, mib: u64) -> Self {
        std::fs::File::create(file).unwrap().set_len(mib << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(file).output().unwrap();
        assert_mounted(&made);
        let done = Command::new("mount").args(["-o", "loop"]).arg(file).arg(at).output();
        assert_mounted(&done.unwrap());
        Self {
            at,
            frozen: std::cell::Cell::new(false),
        }
    }

    /// From now on whoever writes or syncs waits.
    pub fn freeze(&self) {
        self.set("-f");
        self.frozen.set(true);
    }

    pub fn thaw(&self) {
        self.frozen.set(false);
        self.set("-u");
    }

    fn set(&self, flag: &str) {
        let done = Command::new("fsfreeze").arg(flag).arg(self.at).output().unwrap();
        let why = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "fsfreeze {flag}: {}", why.trim_end());
    }
}

impl Drop for Freezable<'_> {
    fn drop(&mut self) {
        // a frozen one would be there for ever, and with it whoever waits for it
        if self.frozen.get() {
            let _ = Command::new("fsfreeze").arg("-u").arg(self.at).status();
        }
        let _ = Command::new("umount").arg("-l").arg(self.at).status();
    }
}

/// Words before a program that make `dir` read-only for it and for nobody else.
pub fn read_only(dir: &Path) -> Vec<OsString> {
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@""#;
    let tried = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(dir)
        .arg("true")
        .output()
        .unwrap();
    assert_mounted(&tried);
    let mut words: Vec<OsString> = ["unshare", "-m", "sh", "-c", script, "sh"].map(OsString::from).into();
    words.push(dir.into());
    words
}

/// Writes to `path` until there is no byte left.
pub fn fill_up(path: &Path) {
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    let mut size = 1 << 20;
    let block = vec![0; size];
    while size > 0 {
        match file.write(&block[..size]) {
            Ok(written) if written > 0 => {}
            _ => size /= 2,
        }
    }
}
