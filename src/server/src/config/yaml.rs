//! A YAML document as a tree, read the way etcd reads its files: YAML 1.1 words for booleans and null, integers with
//! bases, the last of two equal keys wins, and JSON is YAML too.
//!
//! Nodes live in one list and refer to each other by index, so that an alias costs nothing however often it is used.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Deeper files are not configuration.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<usize>),
    Map(Vec<(String, usize)>),
}

impl Node {
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Null => "nothing",
            Node::Bool(_) => "a boolean",
            Node::Int(_) | Node::Float(_) => "a number",
            Node::Text(_) => "a string",
            Node::List(_) => "a list",
            Node::Map(_) => "a mapping",
        }
    }
}

/// Node and the line it starts in.
#[derive(Debug, Default)]
pub(super) struct Document {
    nodes: Vec<(Node, usize)>,
}

impl Document {
    /// The first document of the text; an empty text is an empty one. Errors tell the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        Builder::default().build(text)
    }

    pub fn root(&self) -> Option<usize> {
        self.nodes.len().checked_sub(1)
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.nodes[at].0
    }

    pub fn line(&self, at: usize) -> usize {
        self.nodes[at].1
    }

    /// Case matters not, as in Go; an exact match goes first.
    pub fn get(&self, map: usize, key: &str) -> Option<usize> {
        let Node::Map(entries) = self.node(map) else {
            return None;
        };
        let last = |matches: &dyn Fn(&str) -> bool| entries.iter().rev().find(|(name, _)| matches(name));
        let entry = last(&|name| name == key).or_else(|| last(&|name| name.eq_ignore_ascii_case(key)));
        entry.map(|(_, node)| *node)
    }
}

#[derive(Default)]
struct Builder {
    document: Document,
    open: Vec<Open>,
    /// Anchor number and node.
    anchors: Vec<(usize, usize)>,
}

/// A collection whose end has not come yet.
struct Open {
    node: Node,
    line: usize,
    anchor: usize,
    /// In a mapping: the key that waits for its value.
    key: Option<String>,
}

impl Builder {
    fn build(mut self, text: &str) -> Result<Document, String> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| error.to_string())?;
            let line = span.start.line();
            match event {
                Event::DocumentEnd => break,
                Event::Scalar(text, style, anchor, tag) => {
                    let forced = tag.is_some_and(|tag| tag.suffix == "str");
                    let plain = style == ScalarStyle::Plain && !forced;
                    let node = if plain && !self.wants_key() {
                        resolve(&text)
                    } else {
                        Node::Text(text.into_owned())
                    };
                    self.add(node, line, anchor)?;
                }
                Event::SequenceStart(anchor, _) => self.start(Node::List(Vec::new()), line, anchor)?,
                Event::MappingStart(anchor, _) => self.start(Node::Map(Vec::new()), line, anchor)?,
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(Open {
                        node,
                        line,
                        anchor,
                        key: _,
                    }) = self.open.pop()
                    {
                        self.add(node, line, anchor)?;
                    }
                }
                Event::Alias(anchor) => {
                    let known = self.anchors.iter().rev().find(|(number, _)| *number == anchor);
                    let node = known
                        .map(|(_, node)| *node)
                        .ok_or_else(|| format!("line {line}: unknown alias"))?;
                    self.attach(node, line)?;
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
            }
        }
        Ok(self.document)
    }

    fn wants_key(&self) -> bool {
        self.open
            .last()
            .is_some_and(|open| matches!(open.node, Node::Map(_)) && open.key.is_none())
    }

    fn start(&mut self, node: Node, line: usize, anchor: usize) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("line {line}: more than {DEPTH_MAX} levels"));
        }
        if self.wants_key() {
            return Err(format!("line {line}: a key must be a string"));
        }
        self.open.push(Open {
            node,
            line,
            anchor,
            key: None,
        });
        Ok(())
    }

    fn add(&mut self, node: Node, line: usize, anchor: usize) -> Result<(), String> {
        let at = self.document.nodes.len();
        self.document.nodes.push((node, line));
        if anchor != 0 {
            self.anchors.push((anchor, at));
        }
        self.attach(at, line)
    }

    fn attach(&mut self, at: usize, line: usize) -> Result<(), String> {
        let Some(open) = self.open.last_mut() else {
            return Ok(());
        };
        match &mut open.node {
            Node::List(items) => items.push(at),
            Node::Map(entries) => match open.key.take() {
                Some(key) => entries.push((key, at)),
                None => match &self.document.nodes[at].0 {
                    Node::Text(key) => open.key = Some(key.clone()),
                    _ => return Err(format!("line {line}: a key must be a string")),
                },
            },
            _ => {} // only collections are ever open
        }
        Ok(())
    }
}

/// What an unquoted word means.
fn resolve(text: &str) -> Node {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Node::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Node::Bool(false);
        }
        _ => {}
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|letter: char| letter.is_ascii_digit() || letter == '.') {
        return Node::Text(text.to_owned());
    }
    if let Ok(value) = super::go::parse_uint(digits, 64) {
        return Node::Int(sign * i128::from(value));
    }
    match digits.parse::<f64>() {
        Ok(value) if digits.bytes().any(|byte| byte.is_ascii_digit()) => Node::Float(sign as f64 * value),
        _ => Node::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str) -> Node {
        let document = Document::parse(&format!("k: {text}")).unwrap();
        let at = document.get(document.root().unwrap(), "k").unwrap();
        document.node(at).clone()
    }

    #[test]
    fn words_have_their_yaml_1_1_meaning() {
        let text = |text: &str| Node::Text(text.to_owned());
        for (written, read) in [
            ("m1", text("m1")),
            ("\"5\"", text("5")),
            ("'yes'", text("yes")),
            ("!!str 5", text("5")),
            ("yes", Node::Bool(true)),
            ("off", Node::Bool(false)),
            ("", Node::Null),
            ("~", Node::Null),
            ("5", Node::Int(5)),
            ("-5", Node::Int(-5)),
            ("0x10", Node::Int(16)),
            ("1_000", Node::Int(1000)),
            ("1e3", Node::Float(1000.0)),
            ("5.5", Node::Float(5.5)),
            ("100ms", text("100ms")),
            ("127.0.0.1", text("127.0.0.1")),
            ("http://localhost:2380", text("http://localhost:2380")),
        ] {
            assert_eq!(value_of(written), read, "{written}");
        }
    }

    #[test]
    fn aliases_keys_and_json_work() {
        let document = Document::parse("{\"a\": &x [1, two], b: *x, B: 1, c: 1, c: 2}").unwrap();
        let root = document.root().unwrap();
        assert_eq!(document.get(root, "a"), document.get(root, "b"));
        assert_eq!(document.node(document.get(root, "B").unwrap()), &Node::Int(1));
        assert_eq!(document.node(document.get(root, "C").unwrap()), &Node::Int(2));
        assert_eq!(document.get(root, "d"), None);
    }

    #[test]
    fn broken_files_name_the_line() {
        let error = Document::parse("a: 1\nb: \"x\n").unwrap_err();
        assert!(error.contains("line"), "{error}");
        let deep = "[".repeat(1_000);
        assert!(Document::parse(&deep).is_err());
        assert!(Document::parse("").unwrap().root().is_none());
        assert!(Document::parse("? [a]\n: b").is_err());
    }
}
