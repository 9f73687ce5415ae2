//! The options a query may hold. The key never stands in the query.

use std::{borrow::Cow, ops::RangeInclusive};

use axum::{extract::Request, http::Method};

use super::{
    refusal::{Refusal, excerpt},
    target::{decode, is_decimal, is_reserved},
};

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Everything acknowledged before the request came in is seen.
    Linearizable,
    /// What this node has applied so far; needs no quorum.
    Stale,
}

/// The options of one request. Each is taken by whoever knows it; what is left
/// at the end is refused.
#[derive(Debug)]
pub(super) struct Options {
    left: Vec<Pair>,
}

impl Options {
    /// The options that a query holds.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        Ok(Self { left: pairs(query)? })
    }

    /// Takes an option; the inner value is what stands after its `=`, if any.
    fn take(&mut self, name: &str) -> Result<Option<Option<Vec<u8>>>, Refusal> {
        let is = |pair: &Pair| pair.0 == name.as_bytes();
        let Some(at) = self.left.iter().position(is) else { return Ok(None) };
        let (_, value) = self.left.swap_remove(at);
        if self.left.iter().any(is) {
            return Err(Refusal::bad_request(
                "duplicate_option",
                format!("the query option {name} is given twice; give it once"),
            ));
        }
        Ok(Some(value))
    }

    /// Takes an option that has no value. Many clients cannot but write an
    /// empty one.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name)? {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) if value.is_empty() => Ok(true),
            Some(Some(_)) => {
                Err(invalid(format!("the query option {name} has no value; write ?{name}")))
            }
        }
    }

    /// Takes an option whose value is any bytes, percent-encoded.
    pub(super) fn bytes(&mut self, name: &str) -> Result<Option<Vec<u8>>, Refusal> {
        match self.take(name)? {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(invalid(format!("the query option {name} needs a value"))),
        }
    }

    /// Takes an option that is a whole number within these bounds.
    pub(super) fn number(
        &mut self,
        name: &str,
        bounds: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.bytes(name)? else { return Ok(None) };
        match decimal(&value) {
            Some(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => Err(invalid(format!(
                "the query option {name} is {:?}; give a whole number from {} to {}",
                excerpt(&String::from_utf8_lossy(&value)),
                bounds.start(),
                bounds.end(),
            ))),
        }
    }

    /// Takes the revision to look at.
    pub(super) fn revision(&mut self) -> Result<Option<i64>, Refusal> {
        self.number("revision", 1..=i64::MAX)
    }

    /// Takes how fresh a read must be.
    pub(super) fn consistency(&mut self) -> Result<Consistency, Refusal> {
        match self.take("consistency")?.as_ref().map(Option::as_deref) {
            None | Some(Some(b"linearizable")) => Ok(Consistency::Linearizable),
            Some(Some(b"stale")) => Ok(Consistency::Stale),
            Some(_) => Err(invalid("the query option consistency is either stale or linearizable")),
        }
    }

    /// Refuses what nobody has taken; `known` says what could have been.
    pub(super) fn finish(self, known: &str) -> Result<(), Refusal> {
        match self.left.first() {
            Some((name, _)) => Err(unknown(name, known)),
            None => Ok(()),
        }
    }
}

/// A decimal number without a plus sign or anything else around it.
fn decimal(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if !is_decimal(digits) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::bad_request("invalid_option", message)
}

/// Whether a request is for a stream that lasts as long as its client likes.
pub(crate) fn lasts(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let streams = |pair: &str| matches!(pair.split('=').next().map(decode), Some(Ok(name)) if name == b"watch" || name == b"list");
    request.method() == Method::GET
        && !is_reserved(request.uri().path())
        && query.split('&').any(streams)
}

/// Refuses every option.
pub(super) fn none(query: Option<&str>) -> Result<(), Refusal> {
    Options::parse(query)?.finish("this request knows none")
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

    fn consistency(query: Option<&str>) -> Result<Consistency, Refusal> {
        let mut options = Options::parse(query)?;
        let consistency = options.consistency()?;
        options.finish("consistency").map(|()| consistency)
    }

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
    fn options_are_taken_by_name_in_any_order() {
        let query = "limit=5&list&from=a%26b%00&keys_only=&revision=9223372036854775807";
        let mut options = Options::parse(Some(query)).expect("well-formed");
        assert_eq!(options.flag("list"), Ok(true));
        assert_eq!(options.flag("watch"), Ok(false));
        assert_eq!(options.revision(), Ok(Some(i64::MAX)));
        assert_eq!(options.flag("keys_only"), Ok(true));
        assert_eq!(options.bytes("from"), Ok(Some(b"a&b\0".to_vec())));
        assert_eq!(options.number("limit", 1..=10), Ok(Some(5)));
        assert_eq!(options.number("limit", 1..=10), Ok(None));
        assert_eq!(options.finish("nothing"), Ok(()));
    }

    #[test]
    fn values_are_checked() {
        let number = |query| {
            let mut options = Options::parse(Some(query)).expect("well-formed");
            options.number("n", -1..=7).map_err(|refusal| refusal.code())
        };
        assert_eq!(number("n=-1"), Ok(Some(-1)));
        for query in ["n", "n=", "n=8", "n=-2", "n=+1", "n=1.0", "n=x", "n=%20", "n=0x1", "n=--1"] {
            assert_eq!(number(query), Err("invalid_option"), "{query}");
        }
        assert_eq!(number("n=9223372036854775808"), Err("invalid_option"));
        assert_eq!(number("n=1&n=2"), Err("duplicate_option"));
        let flag = |query| Options::parse(Some(query)).expect("well-formed").flag("f");
        assert_eq!(flag("f=true").expect_err("a value").code(), "invalid_option");
        assert_eq!(flag("f&f").expect_err("twice").code(), "duplicate_option");
    }

    #[test]
    fn lists_and_watches_last() {
        for (method, target, expected) in [
            (Method::GET, "/a?watch", true),
            (Method::GET, "/?limit=5&list", true),
            (Method::GET, "/a?%77atch=", true),
            (Method::GET, "/a?watching", false),
            (Method::GET, "/a?from=watch", false),
            (Method::GET, "/watch", false),
            (Method::GET, "/-/status?watch", false),
            (Method::PUT, "/a?watch", false),
        ] {
            let request = Request::builder().method(method).uri(target);
            let request = request.body(axum::body::Body::empty()).expect("a request");
            assert_eq!(lasts(&request), expected, "{target}");
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
