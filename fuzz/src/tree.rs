//! Messages as trees: grown by their shape, then written as protobuf or JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use crate::{
    dice::Dice,
    shape::{Field, Kind, SHAPES},
};

/// Messages within messages, at most; decoders stop at a hundred.
const MAX_DEPTH: usize = 6;

/// Keys of few different bytes, so that requests meet the same ones.
const KEYS: [&[u8]; 12] =
    [b"a", b"b", b"k/1", b"k/2", b"k/3", b"k/", b"k0", b"", b"\0", b"\xff", b"a\0b", b"\xff\xff"];

/// Where nobody listens. They stay on this machine with any digit changed.
const URLS: [&str; 4] = ["http://[::1]:7001", "http://[::1]:7002", "http://[::1]:7003", "x"];

/// A message.
#[derive(Debug, Clone, Default)]
pub struct Tree(Vec<(&'static Field, Vec<Value>)>);

#[derive(Debug, Clone)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Text(String),
    Nested(Tree),
}

impl Value {
    fn is_zero(&self) -> bool {
        match self {
            Self::Number(number) => *number == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Text(text) => text.is_empty(),
            Self::Nested(_) => false,
        }
    }
}

impl Tree {
    /// A message of this name, its fields drawn at random, many of them with
    /// values that mean something.
    pub fn grow(dice: &mut Dice, message: &str) -> Self {
        Self::grow_to(dice, message, MAX_DEPTH)
    }

    fn grow_to(dice: &mut Dice, message: &str, depth: usize) -> Self {
        let fields = SHAPES.fields(message);
        let mut tree = Self::default();
        for (at, field) in fields.iter().enumerate() {
            let is_drawn = match field.oneof {
                // The first of them draws for all.
                Some(one) if fields[..at].iter().any(|other| other.oneof == Some(one)) => continue,
                Some(one) => {
                    let choices: Vec<&Field> =
                        fields.iter().filter(|other| other.oneof == Some(one)).collect();
                    if dice.percent(95) {
                        let field = *dice.pick(&choices);
                        tree.add(dice, field, depth);
                    }
                    continue;
                }
                None => dice.percent(if field.repeated { 60 } else { 70 }),
            };
            if is_drawn {
                tree.add(dice, field, depth);
            }
        }
        tree
    }

    fn add(&mut self, dice: &mut Dice, field: &'static Field, depth: usize) {
        if depth == 0 && matches!(field.kind, Kind::Message(_)) {
            return;
        }
        let count = if field.repeated { 1 + dice.index(3) } else { 1 };
        let values = (0..count).map(|_| value(dice, field, depth)).collect();
        self.0.push((field, values));
    }

    /// Sets a number, whatever was drawn for it.
    #[must_use]
    pub fn with(mut self, message: &str, name: &str, number: u64) -> Self {
        self.0.retain(|(field, _)| field.name != name);
        if let Some(field) = SHAPES.fields(message).iter().find(|field| field.name == name) {
            self.0.push((field, vec![Value::Number(number)]));
        }
        self
    }

    /// The message as protobuf.
    pub fn wire(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (field, values) in &self.0 {
            let is_packed =
                field.repeated && values.iter().all(|it| matches!(it, Value::Number(_)));
            if is_packed {
                let mut packed = Vec::new();
                for value in values {
                    if let Value::Number(number) = value {
                        put_varint(&mut packed, *number);
                    }
                }
                put_bytes(&mut bytes, field.number, &packed);
                continue;
            }
            for value in values {
                if field.is_omitted_when_zero() && value.is_zero() {
                    continue;
                }
                match value {
                    Value::Number(number) => {
                        put_varint(&mut bytes, u64::from(field.number) << 3);
                        put_varint(&mut bytes, *number);
                    }
                    Value::Bytes(content) => put_bytes(&mut bytes, field.number, content),
                    Value::Text(text) => put_bytes(&mut bytes, field.number, text.as_bytes()),
                    Value::Nested(tree) => put_bytes(&mut bytes, field.number, &tree.wire()),
                }
            }
        }
        bytes
    }

    /// The message as etcd's gateway takes it: wide numbers as text, bytes in
    /// base64.
    pub fn json(&self, dice: &mut Dice) -> Json {
        let mut object = Map::new();
        for (field, values) in &self.0 {
            let mut list: Vec<Json> =
                values.iter().map(|value| value_json(dice, field, value)).collect();
            let value = match list.pop() {
                Some(value) if !field.repeated => value,
                Some(value) => {
                    list.push(value);
                    Json::Array(list)
                }
                None => Json::Null,
            };
            object.insert(field.name.clone(), value);
        }
        Json::Object(object)
    }
}

fn value(dice: &mut Dice, field: &Field, depth: usize) -> Value {
    match &field.kind {
        Kind::Bool => Value::Number(dice.below(2)),
        Kind::Enum(name) if dice.percent(90) => {
            let (_, number) = dice.pick(SHAPES.choices(name));
            Value::Number(i64::from(*number).cast_unsigned())
        }
        Kind::Enum(_) => Value::Number(dice.magnitude()),
        Kind::Narrow => Value::Number(dice.magnitude() & 0xffff_ffff),
        Kind::Wide => Value::Number(number(dice, &field.name)),
        Kind::Text if field.name.to_lowercase().contains("url") => {
            Value::Text((*dice.pick(&URLS)).to_owned())
        }
        Kind::Text => {
            let length = dice.index(12);
            let letter = |_| char::from(b'a' + dice.index(26) as u8);
            Value::Text((0..length).map(letter).collect())
        }
        Kind::Bytes => Value::Bytes(blob(dice, &field.name)),
        Kind::Message(name) => Value::Nested(Tree::grow_to(dice, name, depth - 1)),
    }
}

/// Numbers that meet something that exists, more often than not.
fn number(dice: &mut Dice, name: &str) -> u64 {
    let name = name.to_lowercase();
    if dice.percent(15) {
        return dice.magnitude();
    }
    if name.contains("ttl") {
        return *dice.pick(&[1, 60, 600, 0, u64::MAX, i64::MAX.cast_unsigned(), 9_000_000_000]);
    }
    if name.contains("revision") {
        return dice.below(24);
    }
    if name == "lease" && dice.percent(50) {
        return 0;
    }
    dice.below(6)
}

fn blob(dice: &mut Dice, name: &str) -> Vec<u8> {
    let is_key = matches!(name, "key" | "range_end" | "name" | "prefix");
    match dice.below(20) {
        0 => {
            let length = dice.length();
            dice.noise(length)
        }
        _ if is_key => dice.pick(&KEYS).to_vec(),
        _ => vec![b'v'; dice.index(40)],
    }
}

fn value_json(dice: &mut Dice, field: &Field, value: &Value) -> Json {
    match (value, &field.kind) {
        (Value::Number(number), Kind::Bool) => json!(*number != 0),
        (Value::Number(number), Kind::Enum(name)) => {
            let number = number.cast_signed();
            let choices = SHAPES.choices(name);
            match choices.iter().find(|(_, it)| i64::from(*it) == number) {
                Some((name, _)) if dice.percent(70) => json!(name),
                _ => json!(number),
            }
        }
        (Value::Number(number), Kind::Narrow) => json!(number),
        (Value::Number(number), _) if dice.percent(80) => json!(number.cast_signed().to_string()),
        (Value::Number(number), _) => json!(number),
        (Value::Bytes(bytes), _) => json!(STANDARD.encode(bytes)),
        (Value::Text(text), _) => json!(text),
        (Value::Nested(tree), _) => tree.json(dice),
    }
}

/// Appends a number as protobuf writes it.
pub fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Appends a field of bytes, text or another message.
pub fn put_bytes(bytes: &mut Vec<u8>, number: u32, content: &[u8]) {
    put_varint(bytes, u64::from(number) << 3 | 2);
    put_varint(bytes, content.len() as u64);
    bytes.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use metastore::proto::{Command, etcdserverpb::TxnRequest};
    use prost::Message;

    use super::*;

    #[test]
    fn what_is_grown_can_be_decoded_and_is_not_all_alike() {
        let mut operations = std::collections::BTreeSet::new();
        for number in 0..2000 {
            let mut dice = Dice::new(1, number);
            let wire = Tree::grow(&mut dice, "metastore.v1.Command").wire();
            let command = Command::decode(&wire[..]).expect("a command");
            operations.extend(command.op.map(|op| {
                let text = format!("{op:?}");
                text.split('(').next().map(str::to_owned)
            }));
        }
        assert_eq!(operations.len(), 19, "{operations:?}");
    }

    #[test]
    fn json_says_the_same_as_protobuf() {
        let mut told = 0;
        for number in 0..500 {
            let mut dice = Dice::new(2, number);
            let tree = Tree::grow(&mut dice, "etcdserverpb.TxnRequest");
            let from_wire = TxnRequest::decode(&tree.wire()[..]).expect("a transaction");
            let json = tree.json(&mut dice).to_string();
            if let Ok(from_json) = serde_json::from_str::<TxnRequest>(&json) {
                assert_eq!(from_json, from_wire, "{json}");
                told += 1;
            }
        }
        assert!(told > 200, "only {told} could be read");
    }
}
