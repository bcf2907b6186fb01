//! What was given, by whom: the flags, the environment and the file all end up here.

use quorate_runtime::telemetry::Record;

use super::gates::Gates;
use super::table::{Support, TABLE, find};
use super::url::Url;
use super::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    CommandLine,
    Environment,
    File,
}

/// One slot per flag of the table.
#[derive(Debug)]
pub(super) struct Settings {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    origin: Option<Origin>,
    /// None: given, but the text left the default in force.
    value: Option<Value>,
}

impl Settings {
    pub fn new() -> Self {
        Self {
            slots: vec![Slot::default(); TABLE.len()],
        }
    }

    /// A later value takes the place of an earlier one.
    pub fn set(&mut self, index: usize, origin: Origin, value: Option<Value>) {
        let slot = &mut self.slots[index];
        slot.origin = Some(origin);
        if value.is_some() {
            slot.value = value;
        }
    }

    pub fn origin(&self, index: usize) -> Option<Origin> {
        self.slots[index].origin
    }

    pub fn is_given(&self, name: &str) -> bool {
        find(name).is_some_and(|index| self.origin(index).is_some())
    }

    /// The value in force: given, or default.
    fn value(&self, name: &str) -> Option<Value> {
        let index = find(name)?;
        debug_assert!(
            TABLE[index].support != Support::NotYet,
            "{name} is read, so it is supported"
        );
        self.slots[index].value.clone().or_else(|| default_of(index))
    }

    pub fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Bool(true)))
    }

    pub fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Some(Value::Int(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    pub fn uint(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Value::Uint(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    /// Nanoseconds.
    pub fn duration(&self, name: &str) -> i64 {
        match self.value(name) {
            Some(Value::Duration(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    pub fn text(&self, name: &str) -> String {
        match self.value(name) {
            Some(Value::Text(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    pub fn gates(&self, name: &str) -> Gates {
        match self.value(name) {
            Some(Value::Gates(value)) => value,
            other => wrong_kind(name, &other),
        }
    }

    /// Empty if there is neither a value nor a default.
    pub fn urls(&self, name: &str) -> Vec<Url> {
        match self.value(name) {
            Some(Value::Urls(value)) => value,
            None => Vec::new(),
            other => wrong_kind(name, &other),
        }
    }

    /// The first setting that asks for something this release can't do, as its owner wrote its name.
    pub fn first_not_yet(&self) -> Option<String> {
        TABLE
            .iter()
            .enumerate()
            .zip(&self.slots)
            .find_map(|((index, flag), slot)| {
                let (Some(origin), Support::NotYet) = (slot.origin, flag.support) else {
                    return None;
                };
                let value = slot.value.as_ref()?;
                if Some(value) == default_of(index).as_ref() {
                    return None;
                }
                Some(match origin {
                    Origin::CommandLine => format!("--{}", flag.name),
                    Origin::Environment => flag.env_name(),
                    Origin::File => super::file::key_path(flag),
                })
            })
    }

    /// What etcd says about settings that are on their way out.
    pub fn deprecations(&self) -> Vec<Record> {
        use quorate_runtime::telemetry::Level::Warn;
        let mut records = Vec::new();
        if self.is_given("max-snapshots") {
            let text = "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.";
            records.push(Record::new(Warn, text));
        }
        if self.is_given("v2-deprecation") {
            let text = "--v2-deprecation is deprecated and scheduled for removal in v3.8. \
                        The default value is enforced, ignoring user input.";
            records.push(Record::new(Warn, text));
        }
        for (flag, slot) in TABLE.iter().zip(&self.slots) {
            if slot.origin.is_some() && flag.support == Support::Dropped && flag.name != "v2-deprecation" {
                records.push(Record::new(Warn, "flag has no effect and is ignored").field("flag", flag.name));
            }
        }
        records
    }
}

pub(super) fn default_of(index: usize) -> Option<Value> {
    let flag = &TABLE[index];
    flag.kind.parse(flag.default).unwrap_or_default()
}

/// The table gives each flag one kind and a default of that kind (a test reads them all), so no input leads here.
fn wrong_kind(name: &str, value: &Option<Value>) -> ! {
    unreachable!("flag {name} is read as another kind than the table says: {value:?}")
}
