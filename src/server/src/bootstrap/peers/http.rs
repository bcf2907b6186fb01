//! Asks over HTTP/1.1: one connection and one request for each URL, none of it without bounds, redirects not followed.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::{Answers, Failure, Peers, Reply};
use crate::config::Url;
use crate::http::peer::{CLUSTER_ID, QUORATE_VERSION};
use crate::peer::dial::Dialer;

/// A list of members is a few kilobytes.
const BODY_BYTES_MAX: usize = 4 << 20;
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Peers over the network. The tasks run on a runtime that is not the caller's thread.
#[derive(Clone, Debug)]
pub struct HttpPeers {
    runtime: Handle,
    dialer: Dialer,
}

impl HttpPeers {
    pub fn new(runtime: Handle, dialer: Dialer) -> Self {
        Self { runtime, dialer }
    }
}

impl Peers for HttpPeers {
    fn get(&self, urls: &[Url], path: &'static str, patience: Duration) -> Answers {
        let (tx, rx) = channel();
        let mut tasks = JoinSet::new();
        for url in urls.iter().cloned() {
            let (dialer, tx) = (self.dialer.clone(), tx.clone());
            let ask = async move {
                let answer = tokio::time::timeout(patience, get(&dialer, &url, path)).await;
                let answer = answer.unwrap_or(Err(Failure::TimedOut(patience)));
                let _ = tx.send((url, answer)); // nobody waits for it any more
            };
            tasks.spawn_on(ask, &self.runtime);
        }
        Box::new(Asked { rx, _tasks: tasks })
    }
}

/// Questions under way; they end when this is dropped.
struct Asked {
    rx: Receiver<(Url, Result<Reply, Failure>)>,
    _tasks: JoinSet<()>,
}

impl Iterator for Asked {
    type Item = (Url, Result<Reply, Failure>);

    fn next(&mut self) -> Option<Self::Item> {
        self.rx.recv().ok()
    }
}

async fn get(dialer: &Dialer, url: &Url, path: &'static str) -> Result<Reply, Failure> {
    let stream = dialer.dial(url).await.map_err(Failure::Connect)?;
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = client
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Exchange)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static(path);
    // A socket file is no host; a name that is none is not for us to send on.
    let host = (!url.scheme.is_unix()).then(|| HeaderValue::from_str(&url.authority()).ok());
    let host = host.flatten().unwrap_or(HeaderValue::from_static("localhost"));
    request.headers_mut().insert(HOST, host);
    request
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));

    let exchange = async {
        let response = sender.send_request(request).await.map_err(Failure::Exchange)?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        let header = |name: &HeaderName| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (cluster, quorate) = (header(&CLUSTER_ID), header(&QUORATE_VERSION));
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX);
        let body = body.collect().await.map_err(Failure::Body)?.to_bytes();
        Ok(Reply { cluster, quorate, body })
    };
    // How the connection ends is told to the exchange as well, behind what was received before that.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        reply = exchange => reply,
        never = drive => match never {},
    }
}
