//! Which thing a request's path names.

use bytes::Bytes;

use super::refusal::{Refusal, excerpt};

/// Paths that begin so are not keys. Checked before decoding, so that the key
/// `-/x` can still be written `/%2D/x`.
const RESERVED: &str = "/-/";

const KEY_METHODS: &str = "GET, HEAD, PUT, DELETE";
const NUMBERED_KEY_METHODS: &str = "GET, HEAD, PUT, DELETE, POST";

/// Whether a raw path is outside the key space.
pub(super) fn is_reserved(raw_path: &str) -> bool {
    raw_path.starts_with(RESERVED)
}

/// Whether a raw path is for operators and probes, and not for what clients do
/// all day, as transactions and leases are.
pub(crate) fn is_for_operators(raw_path: &str) -> bool {
    let first = raw_path.strip_prefix(RESERVED).and_then(|rest| rest.split('/').next());
    matches!(
        first,
        Some(
            "members"
                | "leader"
                | "status"
                | "metrics"
                | "health"
                | "livez"
                | "readyz"
                | "compact"
                | "hash"
        )
    )
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A key, decoded; never empty.
    Key(Bytes),
    /// The empty key: no key, but the prefix of all.
    Root,
    /// The members of the cluster.
    Members,
    /// One member.
    Member(u64),
    /// The promotion of a member.
    Promote(u64),
    /// The leadership of a member.
    Leader(u64),
    /// Something to look at.
    Operation(Operation),
    /// A transaction.
    Txn,
    /// The compaction of the history.
    Compact,
    /// All leases.
    Leases,
    /// One lease.
    Lease(i64),
    /// The renewal of a lease.
    KeepAlive(i64),
}

/// What an operator can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Status,
    Health,
    Livez,
    Readyz,
    Metrics,
    Hash,
}

impl Target {
    /// Parses a path as it stood on the request line, without its query.
    pub(super) fn parse(raw_path: &str) -> Result<Self, Refusal> {
        if let Some(rest) = raw_path.strip_prefix(RESERVED) {
            return Self::parse_reserved(rest);
        }
        let Some(raw_key) = raw_path.strip_prefix('/') else {
            // `OPTIONS *` and `CONNECT host:port`.
            return Err(Refusal::bad_request(
                "invalid_target",
                "the request target is not a path; ask for /{key} or /-/status",
            ));
        };
        let key = decode(raw_key)?;
        Ok(if key.is_empty() { Self::Root } else { Self::Key(key.into()) })
    }

    fn parse_reserved(rest: &str) -> Result<Self, Refusal> {
        let segments: Vec<&str> = rest.splitn(4, '/').collect();
        Ok(match *segments.as_slice() {
            ["members"] => Self::Members,
            ["members", id] if !id.is_empty() => Self::Member(member_id(id)?),
            ["members", id, "promote"] if !id.is_empty() => Self::Promote(member_id(id)?),
            ["leader", id] if !id.is_empty() => Self::Leader(member_id(id)?),
            ["txn"] => Self::Txn,
            ["compact"] => Self::Compact,
            ["leases"] => Self::Leases,
            ["leases", id] if !id.is_empty() => Self::Lease(lease_id(id)?),
            ["leases", id, "keepalive"] if !id.is_empty() => Self::KeepAlive(lease_id(id)?),
            ["status"] => Self::Operation(Operation::Status),
            ["health"] => Self::Operation(Operation::Health),
            ["livez"] => Self::Operation(Operation::Livez),
            ["readyz"] => Self::Operation(Operation::Readyz),
            ["metrics"] => Self::Operation(Operation::Metrics),
            ["hash"] => Self::Operation(Operation::Hash),
            _ => {
                return Err(Refusal::not_found(
                    "unknown_path",
                    format!(
                        "there is nothing at /-/{}; a key that begins with -/ is written /%2D/…",
                        excerpt(rest)
                    ),
                ));
            }
        })
    }

    /// The metrics label: one of a fixed set.
    pub(super) fn route(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::Root => "/{key}",
            Self::Members => "/-/members",
            Self::Member(_) => "/-/members/{id}",
            Self::Promote(_) => "/-/members/{id}/promote",
            Self::Leader(_) => "/-/leader/{id}",
            Self::Txn => "/-/txn",
            Self::Compact => "/-/compact",
            Self::Leases => "/-/leases",
            Self::Lease(_) => "/-/leases/{id}",
            Self::KeepAlive(_) => "/-/leases/{id}/keepalive",
            Self::Operation(Operation::Status) => "/-/status",
            Self::Operation(Operation::Health) => "/-/health",
            Self::Operation(Operation::Livez) => "/-/livez",
            Self::Operation(Operation::Readyz) => "/-/readyz",
            Self::Operation(Operation::Metrics) => "/-/metrics",
            Self::Operation(Operation::Hash) => "/-/hash",
        }
    }

    /// The methods it understands, as the Allow header lists them.
    pub(super) fn allow(&self) -> &'static str {
        match self {
            Self::Key(key) if is_decimal(key) => NUMBERED_KEY_METHODS,
            Self::Key(_) => KEY_METHODS,
            Self::Members | Self::Leases => "GET, HEAD, POST",
            Self::Lease(_) => "GET, HEAD, DELETE",
            Self::Member(_) => "PUT, DELETE",
            Self::Promote(_) | Self::Leader(_) | Self::Txn | Self::Compact | Self::KeepAlive(_) => {
                "POST"
            }
            Self::Operation(_) | Self::Root => "GET, HEAD",
        }
    }
}

/// Whether a key has the form of a member id.
pub(super) fn is_decimal(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(u8::is_ascii_digit)
}

/// A member id: digits, at least 1.
pub(super) fn member_id(text: &str) -> Result<u64, Refusal> {
    // `parse` alone would take a sign.
    let id = if is_decimal(text.as_bytes()) { text.parse().ok() } else { None };
    id.filter(|id| *id > 0).ok_or_else(|| {
        Refusal::bad_request(
            "invalid_member_id",
            format!("{:?} is not a member id; ids are whole numbers from 1", excerpt(text)),
        )
    })
}

/// A lease id: a whole number but 0. Ids that clients chose may be negative.
pub(super) fn lease_id(text: &str) -> Result<i64, Refusal> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let id = if is_decimal(digits.as_bytes()) { text.parse().ok() } else { None };
    id.filter(|id| *id != 0).ok_or_else(|| {
        Refusal::bad_request(
            "invalid_lease_id",
            format!(
                "{:?} is not a lease id, a decimal number; GET /-/leases lists them",
                excerpt(text)
            ),
        )
    })
}

/// Undoes percent-encoding, once. Everything else is literal, `+` too.
pub(super) fn decode(raw: &str) -> Result<Vec<u8>, Refusal> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            decoded.push(first);
            rest = tail;
            continue;
        }
        let octet = match tail {
            [high, low, ..] => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        let Some((high, low)) = octet else {
            return Err(Refusal::bad_request(
                "invalid_escape",
                "a percent sign must be followed by two hexadecimal digits; write a literal one as %25",
            ));
        };
        decoded.push(high << 4 | low);
        rest = &tail[2..];
    }
    Ok(decoded)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn key(raw_path: &str) -> Vec<u8> {
        match Target::parse(raw_path) {
            Ok(Target::Key(key)) => key.to_vec(),
            other => panic!("{raw_path} is not a key: {other:?}"),
        }
    }

    fn refused(raw_path: &str) -> (StatusCode, &'static str) {
        let refusal = Target::parse(raw_path).expect_err(raw_path);
        (refusal.status(), refusal.code())
    }

    #[test]
    fn a_key_is_the_path_after_the_first_slash_decoded_once() {
        for (raw_path, expected) in [
            ("/a", &b"a"[..]),
            ("/a/b", b"a/b"),
            ("//", b"/"),
            ("//a//b/", b"/a//b/"),
            ("/.", b"."),
            ("/../a/./b", b"../a/./b"),
            ("/a+b", b"a+b"),
            ("/a%20b", b"a b"),
            ("/%2e%2E", b".."),
            ("/a%2Fb", b"a/b"),
            ("/%2525", b"%25"),
            ("/%00%ff%FE", b"\x00\xff\xfe"),
            ("/ключ", "ключ".as_bytes()),
            ("/-", b"-"),
            ("/-x/members", b"-x/members"),
            ("/%2D/members", b"-/members"),
            ("/%2d/", b"-/"),
            ("/-%2Fmembers", b"-/members"),
            ("//-/members", b"/-/members"),
            ("/*", b"*"),
            ("/{key}", b"{key}"),
        ] {
            assert_eq!(key(raw_path), expected, "{raw_path}");
        }
    }

    #[test]
    fn broken_escapes_are_refused_and_the_empty_key_is_none() {
        for raw_path in ["/%", "/%z", "/%zz", "/a%2", "/%2", "/%%41", "/%+1", "/a%e", "/%é"] {
            assert_eq!(
                refused(raw_path),
                (StatusCode::BAD_REQUEST, "invalid_escape"),
                "{raw_path}"
            );
        }
        assert_eq!(Target::parse("/"), Ok(Target::Root));
        for raw_path in ["", "*", "?", "host:80"] {
            assert_eq!(refused(raw_path), (StatusCode::BAD_REQUEST, "invalid_target"));
        }
    }

    #[test]
    fn reserved_paths() {
        let parse = |raw_path| Target::parse(raw_path).expect("a known path");
        assert_eq!(parse("/-/members"), Target::Members);
        assert_eq!(parse("/-/members/18446744073709551615"), Target::Member(u64::MAX));
        assert_eq!(parse("/-/members/4/promote"), Target::Promote(4));
        assert_eq!(parse("/-/leader/2"), Target::Leader(2));
        assert_eq!(parse("/-/hash"), Target::Operation(Operation::Hash));
        assert_eq!(parse("/-/txn"), Target::Txn);
        assert_eq!(parse("/-/compact"), Target::Compact);
        assert_eq!(parse("/-/leases"), Target::Leases);
        assert_eq!(parse("/-/leases/7587869"), Target::Lease(7_587_869));
        assert_eq!(parse("/-/leases/-9223372036854775808"), Target::Lease(i64::MIN));
        assert_eq!(parse("/-/leases/5/keepalive"), Target::KeepAlive(5));
        for unknown in [
            "/-/",
            "/-//",
            "/-/member",
            "/-/members/",
            "/-/members/4/",
            "/-/members/4/promote/",
            "/-/members/4/demote",
            "/-/members//promote",
            "/-/leader",
            "/-/leader/",
            "/-/leases/",
            "/-/leases//keepalive",
            "/-/leases/5/revoke",
            "/-/txn/",
            "/-/status/",
            "/-/Status",
            "/-/%73tatus",
            "/-/a/b/c/d/e",
        ] {
            assert_eq!(refused(unknown), (StatusCode::NOT_FOUND, "unknown_path"), "{unknown}");
        }
    }

    #[test]
    fn member_ids_are_whole_numbers_from_one() {
        for id in ["x", "0", "+1", "-1", "1.0", "18446744073709551616", "%31", "1 "] {
            let path = format!("/-/members/{id}");
            assert_eq!(refused(&path), (StatusCode::BAD_REQUEST, "invalid_member_id"), "{id}");
        }
    }

    #[test]
    fn lease_ids_are_whole_numbers_but_zero() {
        for id in ["x", "0", "-0", "+1", "--1", "-", "0x5", "9223372036854775808", "%31"] {
            let path = format!("/-/leases/{id}");
            assert_eq!(refused(&path), (StatusCode::BAD_REQUEST, "invalid_lease_id"), "{id}");
        }
    }

    #[test]
    fn the_number_form_allows_post() {
        let allow = |raw_path| Target::parse(raw_path).expect("a path").allow();
        assert_eq!(allow("/4"), "GET, HEAD, PUT, DELETE, POST");
        assert_eq!(allow("/4x"), "GET, HEAD, PUT, DELETE");
        assert_eq!(allow("/-/members/4"), "PUT, DELETE");
    }

    #[test]
    fn what_clients_do_all_day_is_not_for_operators() {
        for path in ["/-/status", "/-/members/7/promote", "/-/leader/1", "/-/metrics", "/-/hash"] {
            assert!(is_for_operators(path), "{path}");
        }
        for path in ["/-/txn", "/-/leases", "/-/leases/7/keepalive", "/-/", "/status", "/-/x"] {
            assert!(!is_for_operators(path), "{path}");
        }
    }
}
