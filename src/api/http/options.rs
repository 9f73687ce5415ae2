//! The options a query may hold. The key never stands in the query.

use super::{
    refusal::{Refusal, excerpt},
    target::decode,
};

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Everything acknowledged before the request came in is seen.
    Linearizable,
    /// What this node has applied so far; needs no quorum.
    Stale,
}

/// The options of a read.
pub(super) fn consistency(query: Option<&str>) -> Result<Consistency, Refusal> {
    let mut consistency = None;
    for (name, value) in pairs(query)? {
        if name != b"consistency" {
            return Err(unknown(
                &name,
                "a read knows consistency=stale and consistency=linearizable",
            ));
        }
        let chosen = match value.as_deref() {
            Some(b"stale") => Consistency::Stale,
            Some(b"linearizable") => Consistency::Linearizable,
            _ => {
                return Err(Refusal::bad_request(
                    "invalid_option",
                    "the query option consistency is either stale or linearizable",
                ));
            }
        };
        if consistency.replace(chosen).is_some() {
            return Err(Refusal::bad_request(
                "duplicate_option",
                "the query option consistency is given twice; give it once",
            ));
        }
    }
    Ok(consistency.unwrap_or(Consistency::Linearizable))
}

/// Refuses every option.
pub(super) fn none(query: Option<&str>) -> Result<(), Refusal> {
    match pairs(query)?.first() {
        Some((name, _)) => Err(unknown(name, "this request knows none")),
        None => Ok(()),
    }
}

type Pair = (Vec<u8>, Option<Vec<u8>>);

fn pairs(query: Option<&str>) -> Result<Vec<Pair>, Refusal> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Vec::new()) };
    query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((decode(name)?, Some(decode(value)?))),
            None => Ok((decode(pair)?, None)),
        })
        .collect()
}

fn unknown(name: &[u8], known: &str) -> Refusal {
    let name = excerpt(&String::from_utf8_lossy(name));
    Refusal::bad_request(
        "unknown_option",
        format!("{name:?} is not a query option; {known}; a question mark in a key is written %3F"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_linearizable_unless_told() {
        for (query, expected) in [
            (None, Consistency::Linearizable),
            (Some(""), Consistency::Linearizable),
            (Some("consistency=linearizable"), Consistency::Linearizable),
            (Some("consistency=stale"), Consistency::Stale),
            (Some("%63onsistency=%73tale"), Consistency::Stale),
        ] {
            assert_eq!(consistency(query), Ok(expected), "{query:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (query, code) in [
            ("list", "unknown_option"),
            ("ttl=5s", "unknown_option"),
            ("consistency=stale&watch", "unknown_option"),
            ("Consistency=stale", "unknown_option"),
            ("consistency=stale&", "unknown_option"),
            ("&", "unknown_option"),
            ("=", "unknown_option"),
            ("consistency", "invalid_option"),
            ("consistency=", "invalid_option"),
            ("consistency=Stale", "invalid_option"),
            ("consistency=stale=", "invalid_option"),
            ("consistency=stale&consistency=stale", "duplicate_option"),
            ("consistency=%zz", "invalid_escape"),
        ] {
            let refusal = consistency(Some(query)).expect_err(query);
            assert_eq!((refusal.status().as_u16(), refusal.code()), (400, code), "{query}");
        }
    }

    #[test]
    fn requests_without_options_refuse_them_all() {
        assert_eq!(none(None), Ok(()));
        assert_eq!(none(Some("")), Ok(()));
        assert!(none(Some("consistency=stale")).is_err());
        assert!(none(Some("&")).is_err());
    }
}
