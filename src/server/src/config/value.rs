//! What a flag can hold, and how its text is read: by the rules, and with the complaints, of Go's `flag` package and
//! of etcd's own flag types.

use std::collections::BTreeMap;

use super::go;
use super::url::{Url, parse_list};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Uint,
    Uint32,
    Duration,
    Text,
    Urls,
    /// Comma-separated on the command line, a sequence in the file; repeated items count once.
    List,
    /// `*`, empty, or URLs.
    Cors,
    ClusterState,
    DiscoveryFallback,
    V2Deprecation,
    /// `A=true,B=false`
    Gates,
    /// Whatever is written is accepted; no value is needed.
    Anything,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// Nanoseconds; negative ones exist.
    Duration(i64),
    Text(String),
    Urls(Vec<Url>),
    List(Vec<String>),
}

/// A switch of `--feature-gates`.
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

/// The gates of etcd 3.7.
pub const GATES: [Gate; 11] = [
    gate("AllAlpha", "ALPHA", false),
    gate("AllBeta", "BETA", false),
    gate("CompactHashCheck", "ALPHA", false),
    gate("FastLeaseKeepAlive", "BETA", true),
    gate("InitialCorruptCheck", "ALPHA", false),
    gate("LeaseCheckpoint", "ALPHA", false),
    gate("LeaseCheckpointPersist", "ALPHA", false),
    gate("PriorityRequest", "ALPHA", false),
    gate("SetMemberLocalAddr", "ALPHA", false),
    gate("StopGRPCServiceOnDefrag", "ALPHA", false),
    gate("TxnModeWriteWithSharedBuffer", "BETA", true),
];

impl Kind {
    /// May stand on the command line without a value.
    pub fn is_switch(self) -> bool {
        matches!(self, Kind::Bool | Kind::Anything)
    }

    /// `Ok(None)` means that the text is accepted and changes nothing.
    pub fn parse(self, text: &str) -> Result<Option<Value>, String> {
        let value = match self {
            Kind::Bool => Value::Bool(go::parse_bool(text).ok_or("parse error")?),
            Kind::Int => Value::Int(go::parse_int(text).map_err(go::NumberError::flag_text)?),
            Kind::Uint => Value::Uint(go::parse_uint(text, 64).map_err(go::NumberError::flag_text)?),
            Kind::Uint32 => {
                // etcd passes this one through as its library words it
                let complain =
                    |error: go::NumberError| format!("strconv.ParseUint: parsing {text:?}: {}", error.text());
                Value::Uint(go::parse_uint(text, 32).map_err(complain)?)
            }
            Kind::Duration => Value::Duration(go::parse_duration(text).ok_or("parse error")?),
            Kind::Text => Value::Text(text.to_owned()),
            // an empty URL list leaves what was there
            Kind::Urls if text.is_empty() => return Ok(None),
            Kind::Urls => Value::Urls(parse_list(text)?),
            Kind::List => Value::List(unique(text.split(',').map(str::to_owned))),
            Kind::Cors => {
                if text != "*" {
                    parse_list(text)?;
                }
                Value::Text(text.to_owned())
            }
            Kind::ClusterState => choice(text, &["new", "existing"], || "invalid value".to_owned())?,
            Kind::DiscoveryFallback => choice(text, &["exit", "proxy"], || "invalid value".to_owned())?,
            Kind::V2Deprecation => {
                let known = ["write-only", "write-only-skip-check", "write-only-drop-data", "gone"];
                choice(text, &known, || format!("invalid value {text:?}"))?
            }
            Kind::Gates => Value::Text(changed_gates(text)?),
            Kind::Anything => Value::Text(text.to_owned()),
        };
        Ok(Some(value))
    }
}

fn choice(text: &str, known: &[&str], complaint: impl FnOnce() -> String) -> Result<Value, String> {
    if known.contains(&text) {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(complaint())
    }
}

/// Items in their order, without those that were there before.
pub(super) fn unique(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

/// Only the gates that differ from their default, sorted, in the same form: naming a gate's default asks for nothing.
fn changed_gates(text: &str) -> Result<String, String> {
    let mut gates = BTreeMap::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, state) = item
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {item}"))?;
        let (name, state) = (name.trim(), state.trim());
        let on = go::parse_bool(state).ok_or_else(|| {
            format!("invalid value of {name}={state}, err: strconv.ParseBool: parsing {state:?}: invalid syntax")
        })?;
        gates.insert(name, on);
    }
    let mut changed = Vec::new();
    for (name, on) in gates {
        let Some(Gate { default, .. }) = GATES.iter().find(|gate| gate.name == name) else {
            return Err(format!("unrecognized feature gate: {name}"));
        };
        if on != *default {
            changed.push(format!("{name}={on}"));
        }
    }
    Ok(changed.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_at_their_default_ask_for_nothing() {
        let parse = |text: &str| Kind::Gates.parse(text);
        let text = |text: &str| Ok(Some(Value::Text(text.to_owned())));
        assert_eq!(parse(""), text(""));
        assert_eq!(parse("FastLeaseKeepAlive=true,LeaseCheckpoint=0"), text(""));
        assert_eq!(
            parse("LeaseCheckpoint=true, FastLeaseKeepAlive=f"),
            text("FastLeaseKeepAlive=false,LeaseCheckpoint=true")
        );
        assert_eq!(parse("X=true"), Err("unrecognized feature gate: X".to_owned()));
        assert_eq!(
            parse("LeaseCheckpoint"),
            Err("missing bool value for LeaseCheckpoint".to_owned())
        );
    }

    #[test]
    fn lists_hold_each_item_once() {
        let list = |items: &[&str]| Ok(Some(Value::List(items.iter().map(|item| (*item).to_owned()).collect())));
        assert_eq!(Kind::List.parse("b,a,b"), list(&["b", "a"]));
        assert_eq!(Kind::List.parse(""), list(&[""]));
    }
}
