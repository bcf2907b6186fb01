//! What a flag can hold, and how its text is read: by the rules, and with the complaints, of Go's `flag` package and
//! of etcd's own flag types.

use super::gates::Gates;
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
    Gates(Gates),
}

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
            Kind::Gates => Value::Gates(Gates::parse(text)?),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_each_item_once() {
        let list = |items: &[&str]| Ok(Some(Value::List(items.iter().map(|item| (*item).to_owned()).collect())));
        assert_eq!(Kind::List.parse("b,a,b"), list(&["b", "a"]));
        assert_eq!(Kind::List.parse(""), list(&[""]));
    }
}
