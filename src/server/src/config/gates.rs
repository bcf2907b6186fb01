//! The switches of `--feature-gates`: those of etcd 3.7, and which of them can be switched here.

use std::collections::BTreeMap;

use super::go;
use super::usage::QUORATE_VERSION;

pub const INITIAL_CORRUPT_CHECK: &str = "InitialCorruptCheck";
pub const STOP_GRPC_SERVICE_ON_DEFRAG: &str = "StopGRPCServiceOnDefrag";
/// Remainders of leases are always replicated here, and durably, so asking for it changes nothing.
const LEASE_CHECKPOINT: &str = "LeaseCheckpoint";
const LEASE_CHECKPOINT_PERSIST: &str = "LeaseCheckpointPersist";

/// A renewal always waits for what is committed where that could matter, so both are the same here.
const FAST_LEASE_KEEP_ALIVE: &str = "FastLeaseKeepAlive";

const SWITCHABLE: [&str; 5] = [
    FAST_LEASE_KEEP_ALIVE,
    INITIAL_CORRUPT_CHECK,
    STOP_GRPC_SERVICE_ON_DEFRAG,
    LEASE_CHECKPOINT,
    LEASE_CHECKPOINT_PERSIST,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    pub name: &'static str,
    /// As etcd's metric has it.
    pub stage: &'static str,
    /// On unless told otherwise.
    pub default: bool,
}

const fn gate(name: &'static str, stage: &'static str, default: bool) -> Gate {
    Gate { name, stage, default }
}

const GATES: [Gate; 11] = [
    gate("AllAlpha", "ALPHA", false),
    gate("AllBeta", "BETA", false),
    gate("CompactHashCheck", "ALPHA", false),
    gate(FAST_LEASE_KEEP_ALIVE, "BETA", true),
    gate(INITIAL_CORRUPT_CHECK, "ALPHA", false),
    gate(LEASE_CHECKPOINT, "ALPHA", false),
    gate(LEASE_CHECKPOINT_PERSIST, "ALPHA", false),
    gate("PriorityRequest", "ALPHA", false),
    gate("SetMemberLocalAddr", "ALPHA", false),
    gate(STOP_GRPC_SERVICE_ON_DEFRAG, "ALPHA", false),
    gate("TxnModeWriteWithSharedBuffer", "BETA", true),
];

/// What was said of gates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gates(BTreeMap<&'static str, bool>);

impl Gates {
    /// `A=true,B=false`; of one that is named twice the last counts.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut said = BTreeMap::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, state) = item
                .split_once('=')
                .ok_or_else(|| format!("missing bool value for {item}"))?;
            let (name, state) = (name.trim(), state.trim());
            let on = go::parse_bool(state).ok_or_else(|| {
                format!("invalid value of {name}={state}, err: strconv.ParseBool: parsing {state:?}: invalid syntax")
            })?;
            let known = GATES.iter().find(|gate| gate.name == name);
            let known = known.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            said.insert(known.name, on);
        }
        Ok(Self(said))
    }

    /// Why these can't be had.
    pub(super) fn check(&self) -> Result<(), String> {
        let asked_for = |gate: &&Gate| !SWITCHABLE.contains(&gate.name) && self.state(gate) != gate.default;
        if let Some(Gate { name, default, .. }) = GATES.iter().find(asked_for) {
            return Err(format!(
                "feature gate {name}={} is not yet supported by Quorate {QUORATE_VERSION}; leave it out or at its default",
                !default
            ));
        }
        if self.is_on(LEASE_CHECKPOINT_PERSIST) && !self.is_on(LEASE_CHECKPOINT) {
            return Err(format!(
                "enabling feature gate {LEASE_CHECKPOINT_PERSIST} requires enabling feature gate {LEASE_CHECKPOINT}"
            ));
        }
        Ok(())
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.all().any(|(gate, on)| gate.name == name && on)
    }

    /// Every gate there is, and whether it is on.
    pub fn all(&self) -> impl Iterator<Item = (Gate, bool)> {
        GATES.iter().map(|gate| (*gate, self.state(gate)))
    }

    fn state(&self, gate: &Gate) -> bool {
        self.0.get(gate.name).copied().unwrap_or(gate.default)
    }
}

/// As etcd's start record has it.
impl std::fmt::Display for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, (name, on)) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{name}={on}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_counts_and_defaults_do_otherwise() {
        let gates = Gates::parse("InitialCorruptCheck=1, FastLeaseKeepAlive=true,LeaseCheckpoint=true").unwrap();
        assert!(gates.is_on(INITIAL_CORRUPT_CHECK) && gates.is_on("FastLeaseKeepAlive"));
        assert!(!gates.is_on(STOP_GRPC_SERVICE_ON_DEFRAG) && !gates.is_on("AllAlpha"));
        assert_eq!(
            gates.to_string(),
            "FastLeaseKeepAlive=true,InitialCorruptCheck=true,LeaseCheckpoint=true"
        );
        gates.check().unwrap();
        let later = Gates::parse("InitialCorruptCheck=true,InitialCorruptCheck=f").unwrap();
        assert!(!later.is_on(INITIAL_CORRUPT_CHECK));
        assert_eq!(Gates::parse("").unwrap(), Gates::default());
    }

    #[test]
    fn what_is_no_gate_is_refused_in_etcds_words() {
        let refused = |text: &str| Gates::parse(text).unwrap_err();
        assert_eq!(refused("X=true"), "unrecognized feature gate: X");
        assert_eq!(refused("LeaseCheckpoint"), "missing bool value for LeaseCheckpoint");
        assert_eq!(
            refused("LeaseCheckpoint=maybe"),
            "invalid value of LeaseCheckpoint=maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax"
        );
    }

    #[test]
    fn what_cannot_be_switched_is_refused_unless_it_is_left() {
        let checked = |text: &str| Gates::parse(text).unwrap().check();
        checked("CompactHashCheck=false,TxnModeWriteWithSharedBuffer=true").unwrap();
        for (gate, on) in GATES.iter().map(|gate| (gate.name, !gate.default)) {
            let with = if gate == LEASE_CHECKPOINT_PERSIST {
                ",LeaseCheckpoint=true"
            } else {
                ""
            };
            let checked = checked(&format!("{gate}={on}{with}"));
            if SWITCHABLE.contains(&gate) {
                checked.unwrap();
            } else {
                assert_eq!(
                    checked.unwrap_err(),
                    format!(
                        "feature gate {gate}={on} is not yet supported by Quorate 0.1.0; leave it out or at its default"
                    )
                );
            }
        }
        assert_eq!(
            checked("LeaseCheckpointPersist=true").unwrap_err(),
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
        );
    }
}
