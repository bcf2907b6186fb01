//! The command line, in the syntax of Go's `flag` package, and the `ETCD_…` variables.

use std::ffi::OsString;

use quorate_runtime::telemetry::{Level, Record};

use super::settings::{Origin, Settings};
use super::table::{TABLE, find};
use super::value::Kind;
use super::{Exit, usage};

/// Reads the words after the program's name into `settings`. Returns the first positional argument, if any.
pub(super) fn read_args(settings: &mut Settings, words: &[String]) -> Result<Option<String>, Exit> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name_and_value = match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            None => return Ok(Some(word.clone())),
            Some("") if word == "--" => return Ok(words.next().cloned()),
            Some("") => return Ok(Some(word.clone())),
            Some(rest) => rest,
        };
        if name_and_value.starts_with(['-', '=']) {
            return Err(Exit::usage(&format!("bad flag syntax: {word}")));
        }
        let (name, value) = match name_and_value.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name_and_value, None),
        };
        let Some(index) = find(name) else {
            if matches!(name, "h" | "help") {
                return Err(Exit::success(usage::flags(), usage::synopsis()));
            }
            return Err(Exit::usage(&format!("flag provided but not defined: -{name}")));
        };
        let kind = TABLE[index].kind;
        let value = match value {
            Some(value) => value,
            None if kind.is_switch() => "true",
            None => match words.next() {
                Some(value) => value,
                None => return Err(Exit::usage(&format!("flag needs an argument: -{name}"))),
            },
        };
        match kind.parse(value) {
            Ok(value) => settings.set(index, Origin::CommandLine, value),
            Err(reason) if kind == Kind::Bool => {
                return Err(Exit::usage(&format!(
                    "invalid boolean value {value:?} for -{name}: {reason}"
                )));
            }
            Err(reason) => {
                let value = hide_credentials(value);
                return Err(Exit::usage(&format!(
                    "invalid value {value:?} for flag -{name}: {reason}"
                )));
            }
        }
    }
    Ok(None)
}

/// Fills `settings` from the environment and says what it found on the way. A variable that is set to nothing counts
/// as absent; one that meets a flag for the same setting ends the process, whatever the values.
pub(super) fn read_env(
    settings: &mut Settings,
    env: &[(String, OsString)],
    notices: &mut Vec<Record>,
) -> Result<(), Exit> {
    let mut used = Vec::new();
    let mut conflicts = Vec::new();
    let mut refusal = None;
    for (index, flag) in TABLE.iter().enumerate() {
        let name = flag.env_name();
        let Some((_, value)) = env.iter().find(|(key, _)| *key == name) else {
            continue;
        };
        used.push(name.clone());
        if value.is_empty() || is_special(&name) {
            continue;
        }
        if settings.origin(index).is_some() {
            conflicts.push(name);
            continue;
        }
        let shown = if flag.is_secret() {
            "(hidden)".to_owned()
        } else {
            hide_credentials(&value.to_string_lossy())
        };
        let Some(value) = value.to_str() else {
            let text = format!("invalid value {shown:?} for {name}: it is not valid UTF-8");
            refusal.get_or_insert_with(|| Exit::refused(text));
            continue;
        };
        match flag.kind.parse(value) {
            Ok(parsed) => {
                settings.set(index, Origin::Environment, parsed);
                let record = Record::new(Level::Info, "recognized and used environment variable");
                notices.push(record.field("variable-name", name).field("variable-value", shown));
            }
            Err(reason) => {
                refusal
                    .get_or_insert_with(|| Exit::refused(format_args!("invalid value {shown:?} for {name}: {reason}")));
            }
        }
    }
    for (name, value) in env {
        let value = value.to_string_lossy();
        if is_special(name) {
            let record = Record::new(Level::Warn, "cannot set special environment variable");
            notices.push(record.field("key", name.as_str()).field("value", value.into_owned()));
        } else if !used.contains(name) {
            let value = if looks_secret(name) {
                "(hidden)".to_owned()
            } else {
                hide_credentials(&value)
            };
            let record = Record::new(Level::Warn, "unrecognized environment variable");
            notices.push(record.field("environment-variable", format!("{name}={value}")));
        }
    }
    if let Some(name) = conflicts.into_iter().next() {
        let text = "conflicting environment variable is shadowed by corresponding command-line flag \
                    (either unset environment variable or disable flag))";
        return Err(Exit::fatal(
            Record::new(Level::Fatal, text).field("environment-variable", name),
        ));
    }
    refusal.map_or(Ok(()), Err)
}

/// Images of etcd carry its release in this variable; it is no switch.
fn is_special(name: &str) -> bool {
    name == "ETCD_VERSION"
}

/// Variables we don't know may belong to a wrapper script and hold its passwords.
fn looks_secret(name: &str) -> bool {
    ["PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "USER"]
        .iter()
        .any(|part| name.contains(part))
}

/// `scheme://user:password@host` loses what stands before the `@`.
fn hide_credentials(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after.find(['/', ',']).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown.push_str("(hidden)");
                &after[at..]
            }
            None => after,
        };
    }
    shown + rest
}

/// The command line as it may be logged: values of secret flags are hidden.
pub(super) fn loggable(words: &[String]) -> Vec<String> {
    let mut hide_next = false;
    let mut shown = Vec::with_capacity(words.len());
    for word in words {
        if std::mem::take(&mut hide_next) {
            shown.push("(hidden)".to_owned());
            continue;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word.as_str(), false),
        };
        let secret =
            name.starts_with('-') && find(name.trim_start_matches('-')).is_some_and(|index| TABLE[index].is_secret());
        match (secret, value) {
            (true, true) => shown.push(format!("{name}=(hidden)")),
            (true, false) => {
                hide_next = true;
                shown.push(word.clone());
            }
            (false, _) => shown.push(hide_credentials(word)),
        }
    }
    shown
}

/// Text of all arguments, or which one is none.
pub(super) fn texts(words: impl Iterator<Item = OsString>) -> Result<Vec<String>, Exit> {
    let text = |(at, word): (usize, OsString)| {
        word.into_string()
            .map_err(|word| Exit::usage(&format!("argument {at} is not valid UTF-8: {}", word.to_string_lossy())))
    };
    words.enumerate().map(text).collect()
}

/// The `ETCD_…` variables. Others are nobody's business here, and need not be text.
pub(super) fn etcd_variables(env: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, OsString)> {
    env.filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("ETCD_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_the_log() {
        let words = [
            "q",
            "--discovery-password=hunter2",
            "-discovery-user",
            "u:hunter2",
            "--name=m",
            "http://u:hunter2@h:1,http://i:1",
        ];
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let shown = loggable(&words).join(" ");
        let wanted = "q --discovery-password=(hidden) -discovery-user (hidden) --name=m http://(hidden)@h:1,http://i:1";
        assert_eq!(shown, wanted);
    }
}
