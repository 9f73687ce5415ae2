//! Every key on disk, of both databases.
//!
//! RocksDB orders keys byte by byte, so numbers are big endian and a key of
//! variable length that something follows is escaped ([`history`]). The
//! families `current` and `deleted` are not here: their keys are the user's,
//! byte for byte.

use std::ops::Bound;

use bytes::Bytes;

use super::KeyRange;
use crate::error::Fatal;

/// The layout of the raft database, and of the watermark's trail beside it,
/// that this version writes; see [`version`](crate::version).
pub const RAFT_FORMAT_VERSION: u32 = 1;

/// The layout of the state database that this version writes; also the version
/// of a snapshot, which is one. See [`version`](crate::version).
pub const STATE_FORMAT_VERSION: u32 = 1;

/// `state` of the raft database and `meta` of the state database: the layout's
/// version, four bytes big endian.
pub const FORMAT: &[u8] = b"format";

/// `state`: whose data this is (cluster id, member id).
pub const IDENTITY: &[u8] = b"identity";

/// `state`: the random number this member drew at its first start.
pub const INCARNATION: &[u8] = b"incarnation";

/// `state`: the founding record, stored before the first vote.
pub const FOUNDING: &[u8] = b"founding";

/// `state`: raft's term, vote and commit index.
pub const HARD_STATE: &[u8] = b"hard_state";

/// `state`: position of the newest snapshot the log starts from.
pub const SNAPSHOT: &[u8] = b"snapshot";

/// `state`: position of the last entry dropped from the log.
pub const TRUNCATED: &[u8] = b"truncated";

/// `state`: name of the live state directory, relative to the node's own.
pub const LIVE_STATE: &[u8] = b"live_state";

/// `state`: what the other members are known to have promised.
pub const WITNESSED: &[u8] = b"witnessed";

/// `meta`: position up to which the log is applied.
pub const APPLIED: &[u8] = b"applied";

/// `meta`: the members and the configuration raft runs with.
pub const MEMBERS: &[u8] = b"members";

/// `meta`: the raised alarms.
pub const ALARMS: &[u8] = b"alarms";

/// A zero byte of the key is written as these two.
const ESCAPED_ZERO: [u8; 2] = [0x00, 0xff];

/// Ends an escaped key; sorts before every other continuation.
const TERMINATOR: [u8; 2] = [0x00, 0x01];

/// Bytes of a revision and a sub-revision.
const REVISION_BYTES: usize = 8 + 4;

/// Bytes of a lease's id.
const LEASE_BYTES: usize = 8;

/// `entries`: the key of the log entry at `index`.
pub const fn entry(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// The index in a key that [`entry`] made.
///
/// # Errors
/// When the key is not one of [`entry`].
pub fn entry_index(key: &[u8]) -> Result<u64, Fatal> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| malformed("entries", key))
}

/// `changes`: the key of the change number `sub`, from 0, of a revision.
pub fn change(revision: u64, sub: u32) -> [u8; REVISION_BYTES] {
    let mut key = [0; REVISION_BYTES];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// The revision and sub-revision in a key that [`change`] made.
///
/// # Errors
/// When the key is not one of [`change`].
pub fn change_revision(key: &[u8]) -> Result<(u64, u32), Fatal> {
    revision(key).ok_or_else(|| malformed("changes", key))
}

/// `history`: the key of the sample of `key` taken at a change.
///
/// Samples of one key stand together, ascending by revision; keys stand in
/// their own order.
pub fn history(key: &[u8], revision: u64, sub: u32) -> Vec<u8> {
    let mut encoded = history_prefix(key);
    encoded.extend_from_slice(&change(revision, sub));
    encoded
}

/// What every sample of `key`, and none of any other key, begins with.
pub fn history_prefix(key: &[u8]) -> Vec<u8> {
    let zeros = key.iter().filter(|&&byte| byte == 0).count();
    let length = key.len() + zeros + TERMINATOR.len();
    let mut encoded = Vec::with_capacity(length + REVISION_BYTES);
    for &byte in key {
        match byte {
            0 => encoded.extend_from_slice(&ESCAPED_ZERO),
            _ => encoded.push(byte),
        }
    }
    encoded.extend_from_slice(&TERMINATOR);
    encoded
}

/// The key, revision and sub-revision in a key that [`history`] made.
///
/// # Errors
/// When the key is not one of [`history`].
pub fn history_parts(encoded: &[u8]) -> Result<(Vec<u8>, u64, u32), Fatal> {
    unescape(encoded)
        .and_then(|(key, rest)| revision(rest).map(|(revision, sub)| (key, revision, sub)))
        .ok_or_else(|| malformed("history", encoded))
}

/// The revision alone in a key that [`history`] made, if it can be one.
pub fn history_revision(encoded: &[u8]) -> Option<u64> {
    let (prefix, place) = encoded.split_last_chunk::<REVISION_BYTES>()?;
    prefix.ends_with(&TERMINATOR).then_some(())?;
    revision(place).map(|(revision, _)| revision)
}

/// `leases`: the key of a lease. Leases stand in the order of their ids.
pub const fn lease(id: i64) -> [u8; LEASE_BYTES] {
    // With the sign bit flipped, negative ids sort before positive ones.
    (id ^ i64::MIN).to_be_bytes()
}

/// `lease_keys`: the key that says that `key` is attached to a lease.
pub fn lease_key(id: i64, key: &[u8]) -> Vec<u8> {
    [&lease(id), key].concat()
}

/// `lease_keys`: everything that [`lease_key`] makes for one lease.
pub fn lease_keys(id: i64) -> KeyRange {
    let upper = id
        .checked_add(1)
        .map_or(Bound::Unbounded, |next| Bound::Excluded(Bytes::copy_from_slice(&lease(next))));
    (Bound::Included(Bytes::copy_from_slice(&lease(id))), upper)
}

/// The attached key in a key that [`lease_key`] made.
///
/// # Errors
/// When the key is not one of [`lease_key`].
pub fn attached_key(encoded: &Bytes) -> Result<Bytes, Fatal> {
    if encoded.len() < LEASE_BYTES {
        return Err(malformed("lease_keys", encoded));
    }
    Ok(encoded.slice(LEASE_BYTES..))
}

/// An escaped key and what follows its terminator.
fn unescape(mut encoded: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut key = Vec::with_capacity(encoded.len());
    loop {
        let zero = encoded.iter().position(|&byte| byte == 0)?;
        key.extend_from_slice(&encoded[..zero]);
        let (pair, rest) = encoded[zero..].split_first_chunk::<2>()?;
        match *pair {
            ESCAPED_ZERO => key.push(0),
            TERMINATOR => return Some((key, rest)),
            _ => return None,
        }
        encoded = rest;
    }
}

fn revision(bytes: &[u8]) -> Option<(u64, u32)> {
    let (revision, sub) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*revision), u32::from_be_bytes(sub.try_into().ok()?)))
}

fn malformed(family: &str, key: &[u8]) -> Fatal {
    Fatal::corrupt(format!("family {family} holds a malformed key: {}", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Keys of few different bytes, so that prefixes and zeros are common.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()], 0..6)
    }

    fn any_lease() -> impl Strategy<Value = i64> {
        prop_oneof![-2..3_i64, Just(i64::MIN), Just(i64::MAX), any::<i64>()]
    }

    proptest! {
        #[test]
        fn entries_keep_their_order_and_come_back(a: u64, b: u64) {
            prop_assert_eq!(entry_index(&entry(a)), Ok(a));
            prop_assert_eq!(a.cmp(&b), entry(a).cmp(&entry(b)));
        }

        #[test]
        fn changes_keep_their_order_and_come_back(a: (u64, u32), b: (u64, u32)) {
            prop_assert_eq!(change_revision(&change(a.0, a.1)), Ok(a));
            prop_assert_eq!(a.cmp(&b), change(a.0, a.1).cmp(&change(b.0, b.1)));
        }

        #[test]
        fn history_keeps_its_order_and_comes_back(
            a in (keys(), 0..3u64, 0..3u32),
            b in (keys(), 0..3u64, 0..3u32),
        ) {
            let (x, y) = (history(&a.0, a.1, a.2), history(&b.0, b.1, b.2));
            prop_assert_eq!(history_parts(&x), Ok(a.clone()));
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            prop_assert!(x.starts_with(&history_prefix(&a.0)));
            prop_assert_eq!(x.starts_with(&history_prefix(&b.0)), a.0 == b.0);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in vec(any::<u8>(), 0..24)) {
            if let Ok((key, revision, sub)) = history_parts(&bytes) {
                prop_assert_eq!(history(&key, revision, sub), bytes.clone());
            }
            prop_assert_eq!(entry_index(&bytes).is_ok(), bytes.len() == 8);
            prop_assert_eq!(change_revision(&bytes).is_ok(), bytes.len() == 12);
            prop_assert_eq!(attached_key(&bytes.clone().into()).is_ok(), bytes.len() >= 8);
        }

        #[test]
        fn the_revision_of_a_sample_is_found_without_its_key(key in keys(), at: u64, sub: u32) {
            prop_assert_eq!(history_revision(&history(&key, at, sub)), Some(at));
        }

        #[test]
        fn attached_keys_keep_their_order_and_come_back(
            a in (any_lease(), keys()),
            b in (any_lease(), keys()),
        ) {
            let (x, y) = (Bytes::from(lease_key(a.0, &a.1)), lease_key(b.0, &b.1));
            prop_assert_eq!(attached_key(&x).unwrap(), a.1.clone());
            prop_assert_eq!(a.cmp(&b), x.as_ref().cmp(&y));
            prop_assert_eq!(lease_keys(b.0).contains(&x), a.0 == b.0);
        }
    }

    #[test]
    fn the_bytes_on_disk_stay_what_they_are() {
        assert_eq!(entry(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(change(1, 2), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
        let expected = [b"a\0\xffb\0\x01".as_slice(), &change(1, 2)].concat();
        assert_eq!(history(b"a\0b", 1, 2), expected);
    }

    #[test]
    fn a_damaged_history_key_is_refused() {
        let whole = history(b"a\0b", 1, 2);
        for length in 0..whole.len() {
            assert!(history_parts(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(history_parts(&[whole.as_slice(), b"x"].concat()).is_err());
        assert!(history_parts(b"a\0\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0\0").is_err());
    }

    #[test]
    fn keys_of_one_family_differ() {
        let state = [
            FORMAT,
            IDENTITY,
            INCARNATION,
            FOUNDING,
            HARD_STATE,
            SNAPSHOT,
            TRUNCATED,
            LIVE_STATE,
            WITNESSED,
        ];
        let meta = [FORMAT, APPLIED, MEMBERS, ALARMS];
        for family in [state.as_slice(), &meta] {
            let distinct: std::collections::BTreeSet<_> = family.iter().collect();
            assert_eq!(distinct.len(), family.len());
        }
    }
}
