//! Newtypes for numbers on the wire, so that a term can't be taken for a revision.

use std::fmt;

/// Position in the store's history. A transaction that changes anything adds 1; an empty store is at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// An empty store is here; the first write makes 2.
    pub const FIRST: Revision = Revision(1);

    /// `RangeRequest.revision`: zero or less asks for the latest, which is no revision at all.
    pub fn from_range(raw: i64) -> Option<Self> {
        (raw > 0).then_some(Self(raw))
    }

    /// The revision of the next change.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Id of a lease; any number but 0, negative ones included, since clients may choose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// A lease field of a key or request: 0 means no lease.
    pub fn from_raw(raw: i64) -> Option<Self> {
        (raw != 0).then_some(Self(raw))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            /// Lower-case hex without padding, as in logs and in the v2 API.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

hex_id!(
    /// Id of a member, computed from its peer URLs; also the raft node id.
    MemberId
);
hex_id!(
    /// Id of a cluster, computed from the ids of its first members.
    ClusterId
);

/// A raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_negative_ask_for_the_latest_revision() {
        assert_eq!(Revision::from_range(0), None);
        assert_eq!(Revision::from_range(-4), None);
        assert_eq!(Revision::from_range(7), Some(Revision(7)));
    }

    #[test]
    fn ids_print_as_hex_without_padding() {
        assert_eq!(MemberId(0x08e9).to_string(), "8e9");
        assert_eq!(LeaseId(-1).to_string(), "ffffffffffffffff");
    }
}
