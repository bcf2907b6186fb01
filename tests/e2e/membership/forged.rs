//! A peer with a valid certificate that lies about everything. Whatever it sends gets an answer or a closed
//! connection; nothing panics, nothing that was acknowledged is lost, and the cluster goes on.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_api::proto::quorate::peer::{
    Answer, Append, Entry, Forward, Hello, InSync, LogId, Ping, ReadIndex, Request, SnapshotAnswer, SnapshotHead,
    SnapshotPart, Transfer, Vote, VoteRequest, answer, refused::Reason, request::Body, snapshot_answer, snapshot_part,
};
use quorate_kit::background::wait_for;
use quorate_kit::raw::{Raw, Windows, frame};
use quorate_kit::rpc::{Bidi, Rpc};
use quorate_kit::{Cluster, Load};

use super::{assert_quiet, of};
use crate::turn;

const LINK: &str = "/quorate.peer.Peer/Link";
const SNAPSHOT: &str = "/quorate.peer.Peer/Snapshot";
const LIMIT: Duration = Duration::from_secs(5);

/// A message as it goes over the link: with its checksum, the field 14, at its end.
fn checked(message: &impl Message) -> Bytes {
    let mut bytes = message.encode_to_vec();
    let sum = crc32c::crc32c(&bytes);
    bytes.push(14 << 3 | 5);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.into()
}

/// A link under a name that is not the liar's.
struct Liar {
    link: Bidi,
    number: u64,
}

impl Liar {
    async fn connect(peers: &Rpc, hello: &Hello) -> Result<Self, answer::Body> {
        let first = Request {
            number: 1,
            body: Some(Body::Hello(*hello)),
        };
        let link = peers.bidi_bytes(LINK, checked(&first)).await.unwrap();
        let mut liar = Self { link, number: 1 };
        match liar.answer().await {
            Some(answer::Body::Welcome(_)) => Ok(liar),
            other => Err(other.expect("a hello is answered")),
        }
    }

    /// `None`: the connection was closed.
    async fn answer(&mut self) -> Option<answer::Body> {
        match self.link.next::<Answer>(LIMIT).await {
            Ok(Some(answer)) => answer.body,
            Ok(None) => None,
            Err(status) if quorate_kit::rpc::gave_up(&status) => panic!("no answer and no end"),
            Err(_) => None,
        }
    }

    async fn ask(&mut self, body: Body) -> Option<answer::Body> {
        self.number += 1;
        let request = Request {
            number: self.number,
            body: Some(body),
        };
        if !self.link.send_bytes(checked(&request)).await {
            return None;
        }
        self.answer().await
    }
}

fn is_refused(answer: Option<&answer::Body>) -> bool {
    matches!(answer, None | Some(answer::Body::Refused(_)))
}

/// Who the liar says it is, to whom, and where that one listens for peers.
struct Lie {
    hello: Hello,
    address: SocketAddr,
    peers: Rpc,
    /// A term that is far ahead of the cluster's, and the last entry there.
    term: u64,
    last: u64,
}

/// As `from`, which does not run, to `to`.
fn lie(cluster: &mut Cluster, from: usize, to: usize) -> Lie {
    let ids = [from, to].map(|member| cluster.member_id(member));
    let status = cluster.status(to).unwrap();
    let config = &cluster[to].config;
    let peers = match cluster.peer_tls() {
        Some(material) => Rpc::with_tls(&config.peer_url(), material),
        None => Rpc::new(&config.peer_url()),
    };
    Lie {
        hello: Hello {
            protocol: 1,
            cluster_id: status.header.unwrap().cluster_id,
            from: ids[0],
            to: ids[1],
            incarnation: 0,
            boot: 1,
        },
        address: SocketAddr::from(([127, 0, 0, 1], config.peer_port)),
        peers,
        term: status.raft_term,
        last: status.raft_index,
    }
}

/// The incarnation of a member's data directory, from its identity file.
fn incarnation(cluster: &Cluster, member: usize) -> u64 {
    let path = cluster[member].config.data_dir().join("member/identity.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let identity: serde_json::Value = serde_json::from_str(&text).unwrap();
    let incarnation = identity["incarnation"].as_str();
    u64::from_str_radix(incarnation.unwrap_or_else(|| panic!("no incarnation in {text:?}")), 16).unwrap()
}

/// A46, A38: `hostile_peer_with_valid_cert_cannot_panic_us`, in the place of a member that is down, on mutual TLS.
#[test]
fn a_peer_that_lies_is_refused_and_nothing_is_lost() {
    let _turn = turn::shared();
    let mut cluster = of(3).with_peer_tls().start();
    let leader = cluster.wait_leader();
    let (down, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let incarnation = incarnation(&cluster, down);
    cluster[down].kill();
    cluster.wait_leader();
    let load = Load::through(&cluster, &[leader, asked])
        .clients(4)
        .keys(3)
        .retrying()
        .start();
    load.wait_acknowledged(50);
    for to in [leader, asked] {
        let mut lie = lie(&mut cluster, down, to);
        wait_for(async move {
            strangers(&lie, to == leader).await;
            lie.hello.incarnation = incarnation;
            links(&lie).await;
            snapshots(&lie).await;
        });
        cluster[to].assert_alive();
    }
    load.wait_acknowledged(50);
    cluster[down].restart();
    cluster.wait_leader();
    let record = load.finish();
    cluster.wait_equal();
    record.check();
    for member in 0..3 {
        assert_quiet(&cluster[member]);
    }
}

/// Whoever is not who it says, or says it to somebody else.
async fn strangers(lie: &Lie, to_leader: bool) {
    let right = lie.hello;
    for (hello, reason) in [
        (right, Reason::OtherIncarnation),
        (Hello { protocol: 0, ..right }, Reason::OtherProtocol),
        (Hello { cluster_id: 1, ..right }, Reason::OtherCluster),
        (Hello { to: 7, ..right }, Reason::WrongMember),
        (
            Hello {
                from: right.to,
                ..right
            },
            Reason::UnknownMember,
        ),
    ] {
        match Liar::connect(&lie.peers, &hello).await {
            Err(answer::Body::Refused(refused)) => {
                assert_eq!(refused.reason(), reason, "{hello:?}");
                assert!(!refused.text.is_empty());
            }
            Err(other) => panic!("{hello:?} is answered {other:?}"),
            Ok(_) => panic!("{hello:?} is let in"),
        }
    }
    let unknown = Hello { from: 7, ..right };
    match Liar::connect(&lie.peers, &unknown).await {
        Err(answer::Body::Refused(refused)) if to_leader => assert_eq!(refused.reason(), Reason::UnknownMember),
        // Whoever does not lead can't tell that there is no such member, and does nothing for it.
        Ok(mut liar) if !to_leader => nothing_for_a_stranger(lie, &mut liar).await,
        Ok(_) => panic!("{unknown:?} is let in by the leader"),
        Err(other) => panic!("{unknown:?} is answered {other:?}"),
    }
}

async fn nothing_for_a_stranger(lie: &Lie, stranger: &mut Liar) {
    let asks = VoteRequest {
        vote: Some(Vote {
            term: lie.term + 1,
            voted_for: 7,
            committed: false,
        }),
        last: Some(id(lie.term, lie.last + 1)),
        transfer: false,
    };
    match stranger.ask(Body::PreVote(asks)).await {
        Some(answer::Body::PreVote(vote)) => assert!(!vote.granted, "there is a leader: {vote:?}"),
        other => panic!("a pre-vote is answered {other:?}"),
    }
    match stranger.ask(Body::ReadIndex(ReadIndex {})).await {
        Some(answer::Body::ReadIndex(read)) => assert_eq!(read.index, 0),
        other => panic!("a read is answered {other:?}"),
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

/// Requests that no member sends, each on a link that is let in.
async fn links(lie: &Lie) {
    let own = lie.hello.from;
    let vote = |term, voted_for, committed| {
        Some(Vote {
            term,
            voted_for,
            committed,
        })
    };
    let entry = |term, index, payload: &'static [u8]| Entry {
        term,
        index,
        payload: Bytes::from_static(payload),
    };
    let append = |term, prev, entries: Vec<Entry>, commit| {
        Body::Append(Append {
            vote: vote(term, own, true),
            prev,
            entries,
            commit,
        })
    };
    let (term, last, far) = (lie.term, lie.last, 1 << 61);
    let asks = |vote, last| VoteRequest {
        vote,
        last,
        transfer: false,
    };
    let lies = [
        // Terms and indices out of all bounds.
        append(u64::MAX, None, vec![], None),
        append(term, Some(id(u64::MAX, last)), vec![], None),
        append(term, Some(id(term, u64::MAX)), vec![entry(term, 0, &[0])], None),
        append(term, Some(id(term, 0)), vec![], None),
        append(term, Some(id(term, last)), vec![], Some(id(u64::MAX, u64::MAX))),
        // Entries with gaps, in the wrong order, of the future, of no kind.
        append(term, Some(id(term, last)), vec![entry(term, last + 5, &[0])], None),
        append(term, None, vec![entry(term, 2, &[0])], None),
        append(term, Some(id(term, last)), vec![entry(term + 9, last + 1, &[0])], None),
        append(term, Some(id(term, last)), vec![entry(term, last + 1, &[])], None),
        append(
            term,
            Some(id(term, last)),
            vec![entry(term, last + 1, &[9, 9, 9])],
            None,
        ),
        append(
            term,
            Some(id(term, last)),
            vec![entry(term, last + 1, &[2, 255, 255, 255, 255])],
            None,
        ),
        // In another's name.
        Body::Append(Append {
            vote: vote(term, lie.hello.to, true),
            prev: None,
            entries: vec![],
            commit: None,
        }),
        Body::Append(Append::default()),
        Body::Vote(asks(vote(term + 1, lie.hello.to, false), None)),
        Body::Vote(asks(vote(term + 1, own, true), None)),
        Body::Vote(asks(vote(u64::MAX, own, false), Some(id(term, last)))),
        Body::Vote(VoteRequest::default()),
        Body::PreVote(asks(vote(u64::MAX, own, false), Some(id(far, far)))),
        Body::Transfer(Transfer::default()),
        Body::Transfer(Transfer {
            from: vote(term, lie.hello.to, true),
            to: lie.hello.to,
            last: Some(id(term, u64::MAX)),
        }),
        Body::Forward(Forward {
            batch: Bytes::from_static(&[1, 2, 3]),
            grows_store: true,
        }),
        Body::Forward(Forward::default()),
        Body::Hello(lie.hello),
    ];
    for forged in lies {
        let shown = format!("{forged:?}");
        let mut liar = Liar::connect(&lie.peers, &lie.hello)
            .await
            .expect("a known member is let in");
        let answer = liar.ask(forged).await;
        assert!(is_refused(answer.as_ref()), "{shown} is answered {answer:?}");
    }
    // Entries that contradict committed ones, by a leader of an old term and of one of its own.
    for (term, index) in [(1, 1), (1, 2), (term, 1)] {
        let mut liar = Liar::connect(&lie.peers, &lie.hello)
            .await
            .expect("a known member is let in");
        let entries = vec![entry(term, index, &[0])];
        let prev = (index > 1).then(|| id(1, index - 1));
        let answer = liar.ask(append(term, prev, entries, Some(id(term, index)))).await;
        let stored = matches!(&answer, Some(answer::Body::Append(answer)) if matches!(
            answer.result,
            Some(quorate_api::proto::quorate::peer::append_answer::Result::Stored(true))
        ));
        assert!(!stored, "{term}/{index}: {answer:?}");
    }
    // What asks for nothing bad is answered, whoever asks.
    let mut liar = Liar::connect(&lie.peers, &lie.hello)
        .await
        .expect("a known member is let in");
    for honest in [
        Body::Ping(Ping {}),
        Body::ReadIndex(ReadIndex {}),
        Body::InSync(InSync { id: u64::MAX }),
        Body::PreVote(asks(vote(term, own, false), None)),
    ] {
        let shown = format!("{honest:?}");
        let answer = liar.ask(honest).await;
        assert!(!is_refused(answer.as_ref()), "{shown}: {answer:?}");
    }
    if lie.address.port() != 0 {
        lengths(lie).await;
    }
}

/// Messages whose prefix lies. TLS or not is the same code behind; the first bytes are the liar's either way.
async fn lengths(lie: &Lie) {
    let mut huge = BytesMut::new();
    huge.put_u8(0);
    huge.put_u32(u32::MAX);
    huge.put_slice(&[0; 64]);
    // No TLS where TLS is spoken: closed, and nothing more.
    if let Ok(mut raw) = Raw::connect(lie.address, Windows::default()).await {
        let _ = raw.call(LINK, huge.freeze()).await;
        let _ = raw.call(SNAPSHOT, frame(&[255; 32])).await;
    }
}

/// Snapshots of nowhere.
async fn snapshots(lie: &Lie) {
    let vote = |term, committed| {
        Some(Vote {
            term,
            voted_for: lie.hello.from,
            committed,
        })
    };
    let head = |hello, vote, last| SnapshotHead { hello, vote, last };
    let (hello, term) = (Some(lie.hello), lie.term);
    let nobody = Hello { from: 7, ..lie.hello };
    for (head, pieces) in [
        (head(None, None, None), 0),
        (head(Some(nobody), vote(term, true), Some(id(term, 5))), 0),
        (head(hello, vote(term, false), Some(id(term, 5))), 0),
        (head(hello, vote(u64::MAX, true), Some(id(term, 5))), 0),
        (head(hello, vote(term, true), Some(id(term + 1, 5))), 0),
        (head(hello, vote(term, true), Some(id(term, u64::MAX))), 0),
        (head(hello, vote(term, true), None), 0),
        // One that goes on with bytes that are no snapshot, for an index far ahead.
        (head(hello, vote(term, true), Some(id(term, 1 << 40))), 3),
    ] {
        let shown = format!("{head:?}");
        let part = |body| SnapshotPart { body: Some(body) };
        let mut stream = lie
            .peers
            .bidi_bytes(SNAPSHOT, checked(&part(snapshot_part::Body::Head(head))))
            .await
            .unwrap();
        for _ in 0..pieces {
            let piece = snapshot_part::Body::Piece(Bytes::from_static(&[7; 4096]));
            stream.send_bytes(checked(&part(piece))).await;
        }
        stream
            .send_bytes(checked(&part(snapshot_part::Body::End(pieces * 4096))))
            .await;
        let answer = stream.next::<SnapshotAnswer>(LIMIT).await;
        let refused = match &answer {
            Ok(Some(answer)) => matches!(answer.body, Some(snapshot_answer::Body::Refused(_))),
            Ok(None) => true,
            Err(status) => !quorate_kit::rpc::gave_up(status),
        };
        assert!(refused, "{shown}: {answer:?}");
    }
}

/// A38: the same lengths where no TLS hides them.
#[test]
fn a_forged_length_is_refused_before_anything_is_kept() {
    let _turn = turn::shared();
    let mut cluster = of(1).start();
    let address = SocketAddr::from(([127, 0, 0, 1], cluster[0].config.peer_port));
    let before = cluster[0].resident_bytes();
    wait_for(async move {
        for path in [LINK, SNAPSHOT] {
            for length in [u32::MAX, (64 << 20) + 1, 64 << 20] {
                let mut raw = Raw::connect(address, Windows::default()).await.unwrap();
                let mut body = BytesMut::new();
                body.put_u8(0);
                body.put_u32(length);
                body.put_slice(&[0; 64]);
                let _ = raw.call(path, body.freeze()).await;
            }
            for bytes in [&[1, 0, 0, 0, 0][..], &[0, 0, 0, 0, 3, 255, 255, 255], &[0; 3]] {
                let mut raw = Raw::connect(address, Windows::default()).await.unwrap();
                let _ = raw.call(path, Bytes::copy_from_slice(bytes)).await;
            }
            let nothing = Request::default();
            let unchecked = nothing.encode_to_vec();
            for message in [unchecked.into(), checked(&nothing)] {
                let mut raw = Raw::connect(address, Windows::default()).await.unwrap();
                let _ = raw.call(path, frame(&message)).await;
            }
        }
    });
    let kept = cluster[0].resident_bytes().saturating_sub(before);
    assert!(kept < 32 << 20, "{kept} bytes are kept");
    super::put(&cluster, 0, "a", "1");
    assert_quiet(&cluster[0]);
    cluster[0].assert_alive();
}
