//! The configuration file. Its values are typed by the table as the command line's are, with two differences that
//! etcd's users know: durations are integers of nanoseconds, and lists are lists.

use std::path::Path;

use quorate_runtime::telemetry::plain_io_error;

use super::Exit;
use super::settings::{Origin, Settings};
use super::table::{FileKey, Flag, TABLE};
use super::url::parse_list;
use super::value::{Kind, Value, unique};
use super::yaml::{Document, Node};

/// Blocks of keys; anything but a mapping there is a mistake.
const BLOCKS: [&str; 4] = [
    "client-transport-security",
    "peer-transport-security",
    "discovery-config",
    "socket-options",
];

pub(super) fn key_path(flag: &Flag) -> String {
    match flag.file {
        FileKey::Same | FileKey::Nowhere => flag.name.to_owned(),
        FileKey::At(path) => path.join("."),
    }
}

/// Fills `settings` from the file at `path`. Keys that mean nothing here are passed over, as etcd does.
pub(super) fn read_file(settings: &mut Settings, path: &Path) -> Result<(), Exit> {
    let shown = path.display();
    let bytes =
        std::fs::read(path).map_err(|error| Exit::refused(format_args!("open {shown}: {}", plain_io_error(&error))))?;
    let text =
        String::from_utf8(bytes).map_err(|_| Exit::refused(format_args!("read {shown}: it is not a text in UTF-8")))?;
    read_text(settings, &text).map_err(|problem| match problem {
        Problem::Url { key, reason } => Exit::plain(&format!("unexpected error setting up {key}: {reason}")),
        Problem::Other(reason) => Exit::refused(format_args!("read {shown}: {reason}")),
        Problem::Value(reason) => Exit::refused(reason),
    })
}

enum Problem {
    /// etcd prints these as a plain line.
    Url { key: &'static str, reason: String },
    /// With the place in the file.
    Other(String),
    /// The same text that the command line would give.
    Value(String),
}

fn read_text(settings: &mut Settings, text: &str) -> Result<(), Problem> {
    let document = Document::parse(text).map_err(Problem::Other)?;
    let Some(root) = document.root() else {
        return Ok(());
    };
    match document.node(root) {
        Node::Map(_) => {}
        Node::Null => return Ok(()),
        other => {
            return Err(Problem::Other(format!(
                "expected a mapping of settings, found {}",
                other.kind()
            )));
        }
    }
    for block in BLOCKS {
        let node = document.get(root, block).map(|at| document.node(at));
        if let Some(other) = node.filter(|node| !matches!(node, Node::Map(_) | Node::Null)) {
            return Err(Problem::Other(format!(
                "invalid {block}: expected a mapping, found {}",
                other.kind()
            )));
        }
    }
    for (index, flag) in TABLE.iter().enumerate() {
        let at = match flag.file {
            FileKey::Nowhere => None,
            FileKey::Same => document.get(root, flag.name),
            FileKey::At(path) => path.iter().try_fold(root, |at, key| document.get(at, key)),
        };
        let Some(at) = at.filter(|at| *document.node(*at) != Node::Null) else {
            continue;
        };
        let value = value_of(flag, &document, at)?;
        settings.set(index, Origin::File, value);
    }
    Ok(())
}

fn value_of(flag: &Flag, document: &Document, at: usize) -> Result<Option<Value>, Problem> {
    let node = document.node(at);
    let wrong = |wanted: &str| {
        let (key, line) = (key_path(flag), document.line(at));
        Problem::Other(format!("line {line}: {key}: expected {wanted}, found {}", node.kind()))
    };
    // 1e3 is a number of the right kind, 5.5 is not
    let whole = match node {
        Node::Int(value) => Some(*value),
        Node::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => Some(*value as i128),
        _ => None,
    };
    let value = match flag.kind {
        Kind::Bool => match node {
            Node::Bool(value) => Value::Bool(*value),
            _ => return Err(wrong("true or false")),
        },
        Kind::Int => {
            let value = whole.and_then(|value| i64::try_from(value).ok());
            Value::Int(value.ok_or_else(|| wrong("an integer"))?)
        }
        Kind::Uint => {
            let value = whole.and_then(|value| u64::try_from(value).ok());
            Value::Uint(value.ok_or_else(|| wrong("an integer that is not negative"))?)
        }
        Kind::Uint32 => {
            let value = whole.and_then(|value| u32::try_from(value).ok());
            Value::Uint(value.ok_or_else(|| wrong("an integer from 0 to 4294967295"))?.into())
        }
        Kind::Duration => {
            let value = whole.and_then(|value| i64::try_from(value).ok());
            Value::Duration(value.ok_or_else(|| wrong("an integer, in nanoseconds"))?)
        }
        Kind::List => {
            let Node::List(items) = node else {
                return Err(wrong("a list of strings"));
            };
            let text = |item: &usize| match document.node(*item) {
                Node::Text(text) => Ok(text.clone()),
                _ => Err(wrong("a list of strings")),
            };
            Value::List(unique(
                items.iter().map(text).collect::<Result<Vec<_>, _>>()?.into_iter(),
            ))
        }
        Kind::Urls | Kind::Cors => {
            let Node::Text(text) = node else {
                return Err(wrong("a string, with commas between URLs"));
            };
            if flag.kind == Kind::Cors || text.is_empty() {
                return flag.kind.parse(text).map_err(|reason| {
                    Problem::Value(format!("invalid value {text:?} for {}: {reason}", key_path(flag)))
                });
            }
            // etcd names this one wrongly, and people search for what it prints
            let key = if flag.name == "advertise-client-urls" {
                "advertise-peer-urls"
            } else {
                flag.name
            };
            Value::Urls(parse_list(text).map_err(|reason| Problem::Url { key, reason })?)
        }
        Kind::Text | Kind::ClusterState | Kind::DiscoveryFallback | Kind::V2Deprecation | Kind::Anything => {
            let Node::Text(text) = node else {
                return Err(wrong("a string (put it in quotes)"));
            };
            // what a cluster state may be is checked later, for the file only
            Value::Text(text.clone())
        }
        Kind::Gates => {
            let Node::Text(text) = node else {
                return Err(wrong("a string (put it in quotes)"));
            };
            return Kind::Gates.parse(text).map_err(Problem::Value);
        }
    };
    Ok(Some(value))
}
