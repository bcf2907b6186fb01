//! Keys in many versions. The index knows where each key has been; values are elsewhere, by revision.
//!
//! * [`index`] — key to versions, ordered, in memory; [`version`] — what it knows of each; [`leaf`] — how it packs them;
//!   [`restoring`] — how it comes back at a start;
//! * [`gather`] — which pairs a range answers, and in which order; [`answer`] — an answer on its way out;
//! * [`pair`] — a pair on the wire; [`compare`] — guards of transactions;
//! * [`values`] — values that stay in memory; [`reads`] — revisions that compaction must leave alone.

pub mod answer;
pub(crate) mod compare;
pub(crate) mod gather;
pub mod index;
mod leaf;
pub(crate) mod pair;
pub(crate) mod reads;
pub(crate) mod restoring;
pub(crate) mod values;
pub mod version;
