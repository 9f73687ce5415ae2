//! Keys and values as JSON: as text where they are UTF-8, else as base64 under
//! another name.

use std::fmt;

use base64::{Engine as _, display::Base64Display, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::refusal::Refusal;
use crate::proto::{KeyRecord, mvccpb::KeyValue};

/// Writes bytes into a JSON object, without making a copy of them.
pub(super) fn entry<M: SerializeMap>(
    map: &mut M,
    text_name: &'static str,
    base64_name: &'static str,
    bytes: &[u8],
) -> Result<(), M::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => map.serialize_entry(text_name, text),
        Err(_) => map.serialize_entry(base64_name, &Base64(bytes)),
    }
}

struct Base64<'a>(&'a [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Base64Display::new(self.0, &STANDARD).fmt(f)
    }
}

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The bytes that a client gave as text or as base64, if it gave them.
pub(super) fn given(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, Refusal> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(Refusal::bad_request(
                "invalid_base64",
                format!("{name}_base64 is not base64 with padding: {error}"),
            )),
        },
        (Some(_), Some(_)) => Err(Refusal::bad_request(
            "invalid_json",
            format!("both {name} and {name}_base64 are given; give one"),
        )),
    }
}

/// A key.
pub(super) struct Key<'a>(pub &'a [u8]);

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "key", "key_base64", self.0)?;
        map.end()
    }
}

/// A key with its value and its revisions.
pub(super) struct Pair<'a> {
    pub kv: &'a KeyValue,
    pub keys_only: bool,
}

impl Serialize for Pair<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kv = self.kv;
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "key", "key_base64", &kv.key)?;
        if !self.keys_only {
            entry(&mut map, "value", "value_base64", &kv.value)?;
        }
        map.serialize_entry("create_revision", &kv.create_revision)?;
        map.serialize_entry("mod_revision", &kv.mod_revision)?;
        map.serialize_entry("version", &kv.version)?;
        map.serialize_entry("lease", &kv.lease)?;
        map.end()
    }
}

/// The state of a key that is known from elsewhere, written into an object
/// that is open.
pub(super) fn record<M: SerializeMap>(map: &mut M, record: &KeyRecord) -> Result<(), M::Error> {
    entry(map, "value", "value_base64", &record.value)?;
    map.serialize_entry("create_revision", &record.create_revision)?;
    map.serialize_entry("mod_revision", &record.mod_revision)?;
    map.serialize_entry("version", &record.version)?;
    map.serialize_entry("lease", &record.lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_the_rest_becomes_base64() {
        let kv = |key: &'static [u8], value: &'static [u8]| KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: -5,
        };
        let json = |kv: KeyValue, keys_only| {
            serde_json::to_string(&Pair { kv: &kv, keys_only }).expect("plain")
        };
        assert_eq!(
            json(kv("ключ".as_bytes(), b"a\n\"b\"\0"), false),
            "{\"key\":\"ключ\",\"value\":\"a\\n\\\"b\\\"\\u0000\",\"create_revision\":2,\
             \"mod_revision\":3,\"version\":2,\"lease\":-5}"
        );
        assert_eq!(
            json(kv(b"\xff", b"\xfe\xff"), false),
            "{\"key_base64\":\"/w==\",\"value_base64\":\"/v8=\",\"create_revision\":2,\
             \"mod_revision\":3,\"version\":2,\"lease\":-5}"
        );
        assert!(!json(kv(b"k", b"v"), true).contains("value"));
    }

    #[test]
    fn bytes_are_given_one_way_or_the_other() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(given("key", None, None), Ok(None));
        assert_eq!(given("key", text("a/w=="), None), Ok(Some("a/w==".into())));
        assert_eq!(given("key", None, text("/w==")), Ok(Some(Bytes::from_static(b"\xff"))));
        for wrong in ["/w", "_w==", "/w==\n", "%", "/x=="] {
            let refusal = given("key", None, text(wrong)).expect_err(wrong);
            assert_eq!(refusal.code(), "invalid_base64", "{wrong}");
        }
        assert_eq!(given("key", text("a"), text("/w==")).expect_err("both").code(), "invalid_json");
    }
}
