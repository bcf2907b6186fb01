//! Peers that say what a test wants.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ::http::StatusCode;
use quorate_api::version::QUORATE_VERSION;

use super::peers::{Answers, Failure, MEMBERS, Peers, Reply, VERSION};
use crate::config::{Config, Url, load};

/// A cluster's `/members`, as JSON.
pub(super) fn member(id: u64, urls: &[&str], client: bool) -> String {
    let client = if client {
        r#","name":"m","clientURLs":["http://10.0.9.9:2379"]"#
    } else {
        ""
    };
    format!(r#"{{"id":{id},"peerURLs":{urls:?}{client}}}"#)
}

/// Answers by URL and path, in the order in which they were given; all else is refused. Notes what is asked.
#[derive(Default)]
pub(super) struct Scripted {
    answers: Vec<(Url, &'static str, Reply)>,
    pub asked: RefCell<Vec<(String, &'static str)>>,
}

impl Scripted {
    pub fn members(mut self, url: &str, cluster: u64, members: &[String]) -> Self {
        let reply = Reply {
            cluster: Some(format!("{cluster:x}")),
            quorate: Some(QUORATE_VERSION.to_owned()),
            body: format!("[{}]\n", members.join(",")).into(),
        };
        self.answers.push((Url::parse(url).unwrap(), MEMBERS, reply));
        self
    }

    /// The latest answer comes from etcd.
    pub fn of_etcd(mut self) -> Self {
        self.answers.last_mut().unwrap().2.quorate = None;
        self
    }

    pub fn version(mut self, url: &str, cluster: &str) -> Self {
        let reply = Reply {
            body: format!(r#"{{"etcdserver":"3.7.1","etcdcluster":"{cluster}"}}"#).into(),
            ..Reply::default()
        };
        self.answers.push((Url::parse(url).unwrap(), VERSION, reply));
        self
    }
}

impl Peers for Scripted {
    fn get(&self, urls: &[Url], path: &'static str, _: Duration) -> Answers {
        let asked = urls.iter().map(|url| (url.raw.clone(), path));
        self.asked.borrow_mut().extend(asked);
        let mut silent: BTreeMap<_, _> = urls.iter().map(|url| (url.clone(), ())).collect();
        let mut answers: Vec<(Url, Result<Reply, Failure>)> = Vec::new();
        for (url, of, reply) in &self.answers {
            if *of == path && silent.remove(url).is_some() {
                answers.push((url.clone(), Ok(reply.clone())));
            }
        }
        let refused = |url| (url, Err(Failure::Status(StatusCode::SERVICE_UNAVAILABLE)));
        answers.extend(silent.into_keys().map(refused));
        Box::new(answers.into_iter())
    }
}

pub(super) fn config(args: &[&str]) -> Config {
    let args = ["quorate"].iter().chain(args).map(OsString::from);
    load(args, std::iter::empty()).unwrap().config
}

pub(super) fn nowhere(_: &str) -> io::Result<Vec<IpAddr>> {
    Err(io::Error::other("no such host"))
}
