//! What a watch asks for.

use bytes::Bytes;

use crate::proto::Change;

/// What a watch wants to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// The key, or the first key of a range.
    pub key: Bytes,
    /// As in etcd: empty for one key, a single zero byte for all keys from
    /// `key` on, otherwise the first key after the range.
    pub range_end: Bytes,
    /// The first revision to be told of; 0 = only what is new.
    pub start_revision: u64,
    /// With the state before each change.
    pub prev_kv: bool,
    /// Without puts.
    pub no_put: bool,
    /// Without deletions.
    pub no_delete: bool,
    /// With a word from time to time when there is nothing to tell.
    pub progress_notify: bool,
}

impl Spec {
    /// The keys that are watched; `None` when there cannot be any.
    pub(super) fn range(&self) -> Option<KeyRange> {
        let key = self.key.clone();
        match &self.range_end[..] {
            [] => Some(KeyRange::Key(key)),
            [0] => Some(KeyRange::Range(key, End::Never)),
            end if end <= &key[..] => None,
            _ => Some(KeyRange::Range(key, End::Before(self.range_end.clone()))),
        }
    }

    /// Whether it wants changes of this kind.
    pub(super) fn wants(&self, change: &Change) -> bool {
        if change.record.is_some() { !self.no_put } else { !self.no_delete }
    }

    /// Bytes of keys it keeps in memory.
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.range_end.len()
    }
}

/// The keys of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyRange {
    Key(Bytes),
    /// From the first key on, and to where.
    Range(Bytes, End),
}

/// Where a range ends. Later ends are greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Before(Bytes),
    Never,
}

impl End {
    /// Whether the range reaches over this key.
    pub fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < &end[..],
            Self::Never => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, range_end: &'static str) -> Option<KeyRange> {
        let (key, range_end) = (Bytes::from(key), Bytes::from(range_end));
        Spec { key, range_end, ..Spec::default() }.range()
    }

    #[test]
    fn range_ends_as_in_etcd() {
        assert_eq!(range("a", ""), Some(KeyRange::Key("a".into())));
        assert_eq!(range("a", "\0"), Some(KeyRange::Range("a".into(), End::Never)));
        assert_eq!(range("\0", "\0"), Some(KeyRange::Range("\0".into(), End::Never)));
        assert_eq!(range("a", "b"), Some(KeyRange::Range("a".into(), End::Before("b".into()))));
        assert_eq!((range("b", "b"), range("b", "a")), (None, None));
    }
}
