//! etcd's own command line, unmodified, as a client.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::tls::{Material, Pair};

const LIMIT: Duration = Duration::from_secs(20);

/// An `etcdctl` with its endpoints and credentials.
#[derive(Clone, Debug)]
pub struct Etcdctl {
    program: PathBuf,
    arguments: Vec<String>,
}

/// A call that goes on, its output line by line. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// The next `count` lines; fails the test when they do not come.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => lines.push(line),
                Err(why) => panic!("{count} lines were due, {why} after {lines:?}"),
            }
        }
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // gone already is as good
        let _ = self.child.wait();
    }
}

/// What one call printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Etcdctl {
    pub fn new(endpoints: &str) -> Self {
        Self {
            program: crate::binary::etcdctl(),
            arguments: vec![format!("--endpoints={endpoints}")],
        }
    }

    /// The same for other endpoints.
    pub fn with_endpoints(&self, endpoints: &str) -> Self {
        let mut other = self.clone();
        other.arguments[0] = format!("--endpoints={endpoints}");
        other
    }

    /// Calls with the material's client certificate.
    pub fn with_tls(self, material: &Material) -> Self {
        let client = material.client.clone();
        self.with_pair(material, &client)
    }

    pub fn with_pair(mut self, material: &Material, pair: &Pair) -> Self {
        self.arguments.push(format!("--cacert={}", material.ca.display()));
        self.arguments.push(format!("--cert={}", pair.cert.display()));
        self.arguments.push(format!("--key={}", pair.key.display()));
        self
    }

    /// Runs to the end; a call that takes longer than 20 s is killed and fails the test.
    pub fn call(&self, arguments: &[&str]) -> Said {
        self.call_with_input(arguments, "")
    }

    pub fn call_with_input(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self.spawn(arguments);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // a thread of its own: neither side of the pipe may wait for the other
        let writer = std::thread::spawn(move || {
            // an etcdctl that ends before reading everything is no fault
            let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
        });
        let said = finish(child, arguments);
        writer.join().unwrap();
        said
    }

    /// Succeeds or fails the test, and gives what was printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let said = self.call(arguments);
        assert!(said.ok, "etcdctl {arguments:?} failed: {}{}", said.out, said.err);
        said.out
    }

    /// Succeeds with `-w json`.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["-w", "json"];
        all.extend_from_slice(arguments);
        let out = self.ok(&all);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error} in {out:?}"))
    }

    /// Fails, and gives what was said about it.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let said = self.call(arguments);
        assert!(!said.ok, "etcdctl {arguments:?} should fail but said: {}", said.out);
        said.err
    }

    /// Starts a call that goes on (watch, keep-alive).
    pub fn follow(&self, arguments: &[&str]) -> Running {
        let mut child = self.spawn(arguments);
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        // ends with the child, whose output it reads
        std::thread::spawn(move || {
            for line in out.lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines }
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        Command::new(&self.program)
            .args(&self.arguments)
            .args(arguments)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.program.display()))
    }
}

fn finish(child: Child, arguments: &[&str]) -> Said {
    let id = rustix::process::Pid::from_child(&child);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watched = done.clone();
    let guard = std::thread::spawn(move || {
        let deadline = Instant::now() + LIMIT;
        while !watched.load(std::sync::atomic::Ordering::Acquire) {
            if Instant::now() > deadline {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        false
    });
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    done.store(true, std::sync::atomic::Ordering::Release);
    guard.thread().unpark();
    assert!(
        !guard.join().unwrap(),
        "etcdctl {arguments:?} took longer than {LIMIT:?}"
    );
    Said {
        ok: status.success(),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}
