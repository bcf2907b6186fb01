//! Changes of membership, one by one: each refusal in etcd's words, and what a start and an image keep.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::proto::quorate as wire;
use quorate_api::{Code, Error as Answer, MemberId, Status};
use quorate_store::backend::{self, Applied};
use quorate_store::command::{Command, Outcome, Reply};
use quorate_store::{Applier, Options, Origin, Store};

struct Node {
    store: Store,
    applier: Applier,
    index: u64,
    folder: Arc<tempfile::TempDir>,
}

impl Node {
    fn open(folder: Arc<tempfile::TempDir>) -> Self {
        let options = Options {
            backend: backend::Options {
                reserve_bytes: 0,
                ..backend::Options::default()
            },
            ..Options::default()
        };
        let (store, applier) = Store::open(&folder.path().join("store"), options, Box::new(())).unwrap();
        Self {
            index: applier.applied().map_or(1, |applied| applied.index + 1),
            store,
            applier,
            folder,
        }
    }

    /// A cluster of these voters, none of them started.
    fn of(ids: &[u64]) -> Self {
        let mut node = Self::open(Arc::new(tempfile::tempdir().unwrap()));
        let member = |id: &u64| Member {
            id: *id,
            peer_ur_ls: vec![url(*id)],
            ..Default::default()
        };
        let members = ids.iter().map(member).collect();
        node.apply(Command::ClusterInit(wire::ClusterInit { cluster_id: 5, members }))
            .unwrap();
        node
    }

    /// The same, all of them started.
    fn started(ids: &[u64]) -> Self {
        let mut node = Self::of(ids);
        ids.iter().for_each(|id| drop(node.apply(publish(*id, *id)).unwrap()));
        node
    }

    fn apply_of(&mut self, member: u64, command: Command) -> Option<Result<Reply, Answer>> {
        let at = Applied {
            index: self.index,
            term: 1,
        };
        let origin = Origin {
            member,
            boot: 1,
            sequence: self.index,
        };
        self.index += 1;
        let mut outcomes = Vec::new();
        let revision = self.store.revision();
        self.applier
            .apply_once(at, origin, true, vec![command], &mut outcomes)
            .unwrap();
        assert_eq!(self.store.revision(), revision, "members are no keys");
        outcomes.pop().map(|Outcome { result, .. }| result)
    }

    fn apply(&mut self, command: Command) -> Result<Vec<Member>, Answer> {
        match self.apply_of(0, command).unwrap()? {
            Reply::Members(members) => {
                assert_eq!(members, self.store.members());
                Ok(members)
            }
            Reply::Done => Ok(self.store.members()),
            other => panic!("{other:?}"),
        }
    }

    fn ids(&self) -> Vec<u64> {
        self.store.members().iter().map(|member| member.id).collect()
    }

    fn crash(self) -> Self {
        let folder = self.folder.clone();
        drop((self.store, self.applier));
        Self::open(folder)
    }
}

fn url(id: u64) -> String {
    format!("http://m{id}:2380")
}

fn add(id: u64) -> wire::MemberAdd {
    wire::MemberAdd {
        id,
        peer_urls: vec![url(id)],
        is_learner: false,
        max_learners: 1,
        strict: true,
    }
}

fn learner(id: u64) -> Command {
    Command::MemberAdd(wire::MemberAdd {
        is_learner: true,
        ..add(id)
    })
}

fn remove(id: u64, strict: bool) -> Command {
    Command::MemberRemove(wire::MemberRemove { id, strict })
}

fn promote(id: u64) -> Command {
    Command::MemberPromote(wire::MemberPromote { id, strict: true })
}

fn update(id: u64, peer_urls: &[&str]) -> Command {
    let peer_urls = peer_urls.iter().map(|url| (*url).to_owned()).collect();
    Command::MemberUpdate(wire::MemberUpdate { id, peer_urls })
}

fn publish(id: u64, incarnation: u64) -> Command {
    Command::MemberPublish(wire::MemberPublish {
        id,
        name: format!("m{id}"),
        client_urls: vec![format!("http://m{id}:2379")],
        incarnation,
    })
}

/// What is refused changes nothing, and says why as etcd does: clients look at the text.
#[test]
fn each_refusal_is_etcds() {
    use Code::{FailedPrecondition, NotFound, Unknown};
    let few = "etcdserver: re-configuration failed due to not enough started members";
    let not_found = "etcdserver: member not found";
    let urls_exist = "etcdserver: Peer URLs already exists";
    let mut node = Node::started(&[1, 2, 3]);
    node.apply(learner(7)).unwrap();
    node.apply(Command::MemberAdd(add(4))).unwrap();
    node.apply(Command::MemberAdd(add(9))).unwrap();
    node.apply(remove(9, true)).unwrap();
    // Voters 1 to 3 started, 4 not; 7 a learner; 9 was here.
    let taken = wire::MemberAdd {
        peer_urls: vec!["http://fresh:2380".to_owned(), " http://m2:2380".to_owned()],
        ..add(5)
    };
    for (command, code, text) in [
        (
            Command::MemberAdd(add(4)),
            FailedPrecondition,
            "etcdserver: member ID already exist",
        ),
        (Command::MemberAdd(add(9)), NotFound, not_found),
        (Command::MemberAdd(add(0)), NotFound, not_found),
        (Command::MemberAdd(taken.clone()), FailedPrecondition, urls_exist),
        (
            learner(8),
            FailedPrecondition,
            "etcdserver: too many learner members in cluster",
        ),
        (update(5, &["http://fresh:2380"]), NotFound, not_found),
        (update(9, &["http://fresh:2380"]), NotFound, not_found),
        (update(1, &["http://m7:2380"]), FailedPrecondition, urls_exist),
        (promote(5), NotFound, not_found),
        (promote(9), NotFound, not_found),
        (
            promote(4),
            FailedPrecondition,
            "etcdserver: can only promote a learner member",
        ),
        (remove(5, true), NotFound, not_found),
        (remove(5, false), NotFound, not_found),
        (remove(9, true), NotFound, not_found),
        (remove(0, true), NotFound, not_found),
        (publish(5, 5), NotFound, not_found),
        (publish(9, 9), NotFound, not_found),
        (
            publish(1, 2),
            FailedPrecondition,
            "the member has published from another data directory: its data was wiped, or it runs twice; remove the \
             member and add it again",
        ),
    ] {
        let before = (node.store.members(), node.store.incarnation(MemberId(1)));
        let status = Status::from(node.apply(command.clone()).unwrap_err());
        assert_eq!((status.code, &status.message[..]), (code, text), "{command:?}");
        let after = (node.store.members(), node.store.incarnation(MemberId(1)));
        assert_eq!(after, before, "{command:?}");
    }
    // Too few have started: said first, as by etcd.
    node.apply(remove(3, true)).unwrap();
    let lenient = |id| wire::MemberAdd {
        strict: false,
        ..add(id)
    };
    let check = |node: &mut Node, command: Command| {
        let status = Status::from(node.apply(command.clone()).unwrap_err());
        assert_eq!((status.code, &status.message[..]), (Unknown, few), "{command:?}");
    };
    // 1 and 2 of 1, 2, 4.
    check(&mut node, Command::MemberAdd(taken));
    check(&mut node, remove(1, true));
    node.apply(Command::MemberAdd(lenient(5))).unwrap();
    check(&mut node, remove(99, true));
    node.apply(Command::MemberAdd(lenient(6))).unwrap();
    // 1 and 2 of 1, 2, 4, 5, 6, and one more would not make up for it.
    check(&mut node, promote(7));
    let promoted = node.apply(Command::MemberPromote(wire::MemberPromote { id: 7, strict: false }));
    assert!(promoted.unwrap().iter().all(|member| !member.is_learner));
}

/// etcd without the strict check removes its only voter, and is gone for good.
#[test]
fn the_last_voter_stays_whoever_asks() {
    let few = Err(Answer::MemberNotEnoughStarted);
    let mut node = Node::started(&[1]);
    assert_eq!(node.apply(remove(1, true)), few);
    assert_eq!(node.apply(remove(1, false)), few);
    node.apply(learner(2)).unwrap();
    assert_eq!(node.apply(remove(1, false)), few, "a learner can't follow");
    node.apply(Command::MemberAdd(add(3))).unwrap();
    assert_eq!(node.apply(remove(1, false)), few, "nor can one that never started");
    node.apply(publish(3, 3)).unwrap();
    node.apply(remove(1, true)).unwrap();
    assert_eq!(node.ids(), [2, 3]);
}

#[test]
fn urls_are_kept_trimmed_and_sorted() {
    let mut node = Node::started(&[1]);
    let odd = wire::MemberAdd {
        peer_urls: vec![" http://z:1 ".to_owned(), "http://a:1".to_owned()],
        ..add(2)
    };
    let members = node.apply(Command::MemberAdd(odd)).unwrap();
    let new = Member {
        id: 2,
        peer_ur_ls: vec!["http://a:1".to_owned(), "http://z:1".to_owned()],
        ..Default::default()
    };
    assert_eq!(
        members.last(),
        Some(&new),
        "name and client URLs are its own to publish"
    );
    node.apply(publish(2, 2)).unwrap();
    let members = node.apply(update(2, &["http://c:1", "http://b:1 "])).unwrap();
    let moved = Member {
        peer_ur_ls: vec!["http://b:1".to_owned(), "http://c:1".to_owned()],
        name: "m2".to_owned(),
        client_ur_ls: vec!["http://m2:2379".to_owned()],
        ..new
    };
    assert_eq!(members.last(), Some(&moved));
    // Its own URLs are no clash, those it left are free.
    node.apply(update(2, &["http://c:1"])).unwrap();
    node.apply(update(1, &["http://b:1"])).unwrap();
    let promoted = |node: &Node| node.store.member(MemberId(3)).map(|member| member.is_learner);
    node.apply(learner(3)).unwrap();
    node.apply(update(3, &["http://d:1"])).unwrap();
    assert_eq!(promoted(&node), Some(true), "an update makes no voter");
    node.apply(promote(3)).unwrap();
    node.apply(update(3, &["http://e:1"])).unwrap();
    assert_eq!(promoted(&node), Some(false));
}

/// B32: who was removed never comes back, in no way in which a state can come to a member: log, file, image. Nor does
/// anything that it still had under way.
#[test]
fn removed_member_stays_removed() {
    let mut node = Node::started(&[1, 2, 3]);
    let taken = |node: &mut Node, command| node.apply_of(2, command).is_some();
    assert!(taken(&mut node, publish(2, 2)));
    assert_eq!(node.store.incarnation(MemberId(2)), Some(2));
    // By its own hand.
    assert!(taken(&mut node, remove(2, true)));
    let check = |node: &mut Node| {
        assert!(node.store.is_removed(MemberId(2)));
        assert_eq!(node.ids(), [1, 3]);
        // Until consensus has let it go it may be needed, it and not a wiped one.
        let standing = node.store.standing(MemberId(2));
        assert!(standing.is_removed && !standing.is_member && standing.incarnation == Some(2));
        let leaving = node.store.members_and_leaving(&[1, 2].into());
        assert_eq!(leaving.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(leaving[2].peer_ur_ls, [url(2)]);
        assert_eq!(node.store.members_and_leaving(&[1].into()).len(), 2);
        assert_eq!(node.store.origin(2), None);
        assert_eq!(node.store.incarnation(MemberId(3)), Some(3));
        for command in [
            Command::MemberAdd(add(2)),
            publish(2, 2),
            promote(2),
            update(2, &["http://x:1"]),
        ] {
            assert_eq!(node.apply(command), Err(Answer::MemberNotFound));
        }
        assert!(!taken(node, Command::MemberAdd(add(4))), "of nobody's any more");
        assert_eq!(node.ids(), [1, 3]);
    };
    check(&mut node);
    node.store.flush().unwrap();
    let mut node = node.crash();
    check(&mut node);

    node.store.flush().unwrap();
    let mut other = Node::open(Arc::new(tempfile::tempdir().unwrap()));
    let mut incoming = other.store.receive().unwrap();
    let pieces: Vec<Bytes> = node.store.image().unwrap().read().map(|piece| piece.unwrap()).collect();
    pieces.iter().for_each(|piece| incoming.push(piece.clone()).unwrap());
    other.applier.install(incoming.finish().unwrap()).unwrap();
    other.index = node.index;
    check(&mut other);
    other.store.flush().unwrap();
    check(&mut other.crash());
}

/// Wiped and started again under its old id, a member would count for entries that it has lost.
#[test]
fn a_wiped_member_must_come_back_as_another() {
    let mut node = Node::of(&[1, 2, 3]);
    assert_eq!(node.store.incarnation(MemberId(2)), None);
    node.apply(publish(2, 20)).unwrap();
    node.apply(publish(2, 20)).unwrap();
    assert_eq!(node.apply(publish(2, 21)), Err(Answer::MemberOtherData));
    assert_eq!(node.apply(publish(2, 0)), Err(Answer::MemberOtherData));
    node.store.flush().unwrap();
    let mut node = node.crash();
    assert_eq!(node.store.incarnation(MemberId(2)), Some(20));
    assert_eq!(node.apply(publish(2, 21)), Err(Answer::MemberOtherData));
    // Each has its own.
    node.apply(publish(1, 21)).unwrap();
    node.apply(publish(3, 22)).unwrap();
    node.apply(remove(2, true)).unwrap();
    let again = wire::MemberAdd {
        peer_urls: vec![url(2)],
        ..add(4)
    };
    node.apply(Command::MemberAdd(again)).unwrap();
    node.apply(publish(4, 21)).unwrap();
}
