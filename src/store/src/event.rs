//! What a change looks like to everything that follows the store: watchers today, replicas of other kinds later.

use bytes::Bytes;
use quorate_api::Revision;

/// One change of one key. The order of events within a revision is the order of their sub-revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub key: Bytes,
    /// `mod_revision` of the pair that stood before the transaction, whatever the transaction itself wrote to the key
    /// first; `None` on creation. The pair itself is read on demand, since few watchers ask for it.
    pub prev: Option<Revision>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put {
        create_revision: Revision,
        version: i64,
        lease: i64,
        value: Bytes,
    },
    Delete,
}

/// Everything that one transaction changed: delivered whole, in one response per watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// `mod_revision` of every event in it.
    pub revision: Revision,
    pub events: Vec<Event>,
}
