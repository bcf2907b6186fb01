//! What is left to end when the test process itself is killed.
//!
//! `Drop` covers tests that fail; nothing runs when the process gets SIGKILL from a job's time limit. A small shell
//! therefore reads which servers run from a pipe that only this process writes. The pipe ends with the process,
//! however it ends, and the shell then kills whatever is still on its list.

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// `+ PID` puts a server on the list, `- PID` takes it off. Interrupts of a terminal go to the whole group: not to this.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
list=' '
while read -r sign pid; do
  case $sign in
    +) list="$list$pid " ;;
    -) case $list in *" $pid "*) list="${list%% $pid *} ${list#* $pid }" ;; esac ;;
  esac
done
for pid in $list; do kill -9 "$pid"; done
"#;

static LIST: OnceLock<Mutex<ChildStdin>> = OnceLock::new();

pub(crate) fn runs(pid: i32) {
    tell('+', pid);
}

pub(crate) fn ended(pid: i32) {
    tell('-', pid);
}

fn tell(sign: char, pid: i32) {
    let list = LIST.get_or_init(|| Mutex::new(start()));
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    // a reaper that somebody killed is no reason to fail a test
    let _ = list.write_all(format!("{sign} {pid}\n").as_bytes());
}

/// Ends with this process, and so is never waited for.
#[allow(clippy::zombie_processes)]
fn start() -> ChildStdin {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::wait::until;

    #[test]
    fn only_what_is_on_the_list_is_killed_when_the_pipe_ends() {
        let mut sleepers: Vec<_> = (0..3)
            .map(|_| Command::new("sleep").arg("60").spawn().unwrap())
            .collect();
        let mut list = start();
        for sleeper in &sleepers {
            writeln!(list, "+ {}", sleeper.id()).unwrap();
        }
        writeln!(list, "- {}", sleepers[1].id()).unwrap();
        drop(list);
        for listed in [0, 2] {
            let status = until("the end of a listed process", Duration::from_secs(10), || {
                sleepers[listed].try_wait().unwrap()
            });
            assert_eq!(status.signal(), Some(9));
        }
        assert_eq!(sleepers[1].try_wait().unwrap(), None);
        sleepers[1].kill().unwrap();
        sleepers[1].wait().unwrap();
    }
}
