//! A process that is never left behind. Three things see to that: dropping a [`Process`] kills it; a panic kills all of
//! them, since release builds abort without dropping; and where `setpriv` exists the kernel kills them when we are
//! killed ourselves.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context;
use parking::ALIVE;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

const SETPRIV: &str = "/usr/bin/setpriv";

pub struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    /// Runs `words`; what it prints is appended to the file `log`.
    pub fn spawn(words: &[OsString], log: &Path) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("open the server's log")?;
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "KILL", "--"]).args(words); // becomes the server by exec: same process id
            command
        } else {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the server's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", words[0].display()))?;
        let pid = Pid::from_child(&child);
        parking::add(pid);
        Ok(Self { child, pid })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid, signal).context("signal the server")
    }

    /// Also reaps it.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("wait for the server")?;
        if status.is_some() {
            parking::remove(self.pid);
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        parking::remove(self.pid);
    }
}

/// Kills every running server when any thread panics.
pub fn kill_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Ok(alive) = ALIVE.try_lock() {
            for pid in alive.iter() {
                let _ = kill_process(*pid, Signal::KILL);
            }
        }
        report(panic);
    }));
}

/// Processes that are running (or dead but not reaped, so that their ids can't belong to anyone else).
mod parking {
    use std::sync::Mutex;

    use rustix::process::Pid;

    pub static ALIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

    pub fn add(pid: Pid) {
        ALIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(pid);
    }

    pub fn remove(pid: Pid) {
        ALIVE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .retain(|alive| *alive != pid);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn is_running(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_dropped_process_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::spawn(&["sleep".into(), "600".into()], &dir.path().join("log")).unwrap();
        let pid = process.pid;
        assert!(is_running(pid));
        drop(process);
        assert!(!is_running(pid));
    }
}
