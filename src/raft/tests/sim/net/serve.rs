//! One lane of a link, on the side that is asked.

use super::Net;
use super::pipe::{Receiver, Sender};
use futures_util::stream::{FuturesUnordered, StreamExt};
use quorate_api::proto::quorate::peer::{Hello, Welcome};
use quorate_raft::peer::service::Service;
use quorate_raft::peer::{Answer, BoxFuture, PROTOCOL, Reason, Request};
use std::sync::Arc;

pub async fn serve(
    net: Arc<Net>,
    lane: u64,
    service: Service,
    mut requests: Receiver<(u64, Request)>,
    mut answers: Sender<(u64, Answer)>,
) {
    let Some((_, Request::Hello(hello))) = requests.next().await else {
        return;
    };
    let welcome = match service.admit(&hello) {
        Ok(()) => Answer::Welcome(Welcome {
            protocol: PROTOCOL,
            incarnation: service.incarnation(),
        }),
        Err(refused) => Answer::Refused(refused),
    };
    let refused = matches!(welcome, Answer::Refused(_));
    answers.send((0, welcome));
    if refused {
        return;
    }
    let hello = Arc::new(hello);
    let mut working = FuturesUnordered::<BoxFuture<(u64, Answer)>>::new();
    loop {
        tokio::select! {
            biased;
            // First: a request takes its place with its first poll, and they have to do so in their order.
            Some((number, answer)) = working.next(), if !working.is_empty() => {
                let ends = matches!(&answer, Answer::Refused(refused)
                    if !matches!(refused.reason(), Reason::NotReady | Reason::Malformed));
                answers.send((number, answer));
                if ends {
                    return;
                }
            }
            request = requests.next() => {
                let Some((number, request)) = request else { return };
                net.trace.mark(&[kind(&request), lane, hello.from, hello.to]);
                if let Request::Forward(forward) = &request {
                    net.perhaps_again(&hello, forward);
                }
                working.push(handle(service.clone(), hello.clone(), number, request));
            }
        }
    }
}

fn handle(service: Service, hello: Arc<Hello>, number: u64, request: Request) -> BoxFuture<(u64, Answer)> {
    Box::pin(async move { (number, service.handle(&hello, request).await) })
}

fn kind(request: &Request) -> u64 {
    match request {
        Request::Append(append) => 100 + append.entries.len() as u64,
        Request::Vote(_) => 1,
        Request::PreVote(_) => 2,
        Request::Transfer(_) => 3,
        Request::Forward(_) => 4,
        Request::ReadIndex(_) => 5,
        _ => 6,
    }
}
