//! The headers by which members identify themselves to each other.

use axum::http::HeaderMap;
use reqwest::RequestBuilder;

use crate::{
    proto::{Identity, LogPosition},
    raftlog::Promises,
};

/// The sender's cluster id; also on refusals, as the refusing member's.
pub(super) const CLUSTER: &str = "x-metastore-cluster";
/// The sender's member id.
const FROM: &str = "x-metastore-from";
/// The sender's incarnation.
const INCARNATION: &str = "x-metastore-incarnation";
/// The member id the sender means to reach.
const TO: &str = "x-metastore-to";
/// The sender's own peer URL as it knows it; optional.
const URL: &str = "x-metastore-url";

/// What the sender has on disk, or, on a refusal over that, what it is known to
/// have had: term, vote, and index and term of the last entry. Absent from
/// members of earlier versions.
const PROMISES: &str = "x-metastore-promises";

/// The longest peer URL that is taken from a header, in bytes.
const MAX_URL_BYTES: usize = 1024;

/// Who sent a request, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) cluster_id: u64,
    pub(super) from: u64,
    pub(super) incarnation: u64,
    pub(super) to: u64,
    pub(super) url: Option<String>,
    pub(super) promises: Option<Promises>,
}

impl Caller {
    /// Reads the headers; the error says which one is missing or malformed.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, String> {
        let url = headers
            .get(URL)
            .and_then(|value| value.to_str().ok())
            .filter(|url| url.len() <= MAX_URL_BYTES && url.starts_with("http://"))
            .map(str::to_owned);
        Ok(Self {
            cluster_id: number(headers, CLUSTER)?,
            from: number(headers, FROM)?,
            incarnation: number(headers, INCARNATION)?,
            to: number(headers, TO)?,
            url,
            promises: promises(headers)?,
        })
    }
}

/// What the header of promises says, if there is one.
pub(super) fn promises(headers: &HeaderMap) -> Result<Option<Promises>, String> {
    let Some(value) = headers.get(PROMISES) else { return Ok(None) };
    let parse = |text: &str| {
        let numbers = text.split(' ').map(|number| number.parse().ok());
        let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
        let [term, vote, index, last_term] = *numbers.first_chunk()?;
        let last = LogPosition { index, term: last_term };
        (numbers.len() == 4).then_some(Promises { term, vote, last })
    };
    let promises = value.to_str().ok().and_then(parse);
    promises.map(Some).ok_or_else(|| format!("the header {PROMISES} is not four numbers"))
}

/// The header of promises, with its name.
pub(super) fn promises_header(promises: &Promises) -> (&'static str, String) {
    let Promises { term, vote, last } = promises;
    (PROMISES, format!("{term} {vote} {} {}", last.index, last.term))
}

/// The value of a header that holds a positive decimal number.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Result<u64, String> {
    let value = headers.get(name).ok_or_else(|| format!("the header {name} is missing"))?;
    value
        .to_str()
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("the header {name} is not a positive number"))
}

/// Adds the headers that say who sends and who is meant.
pub(super) fn identify(request: RequestBuilder, identity: &Identity, to: u64) -> RequestBuilder {
    request
        .header(CLUSTER, identity.cluster_id)
        .header(FROM, identity.member_id)
        .header(INCARNATION, identity.incarnation)
        .header(TO, to)
}

/// Adds the header that says what the sender has on disk.
pub(super) fn with_promises(request: RequestBuilder, promises: &Promises) -> RequestBuilder {
    let (name, value) = promises_header(promises);
    request.header(name, value)
}

/// Adds the header that names the sender's own peer URL.
pub(super) fn with_url(request: RequestBuilder, url: Option<String>) -> RequestBuilder {
    match url {
        Some(url) => request.header(URL, url),
        None => request,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn complete() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(CLUSTER, "7"), (FROM, "1"), (INCARNATION, "9"), (TO, "2")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn each_header_is_required_and_must_be_a_positive_number() {
        let caller =
            Caller { cluster_id: 7, from: 1, incarnation: 9, to: 2, url: None, promises: None };
        assert_eq!(Caller::parse(&complete()), Ok(caller));
        for name in [CLUSTER, FROM, INCARNATION, TO] {
            let mut headers = complete();
            headers.remove(name);
            assert!(Caller::parse(&headers).is_err_and(|why| why.contains(name)));
            for bad in ["", "0", "-1", "+1", "x", "99999999999999999999", "\u{e9}"] {
                let value = HeaderValue::from_bytes(bad.as_bytes()).expect("a legal header value");
                headers.insert(name, value);
                assert!(Caller::parse(&headers).is_err_and(|why| why.contains(name)), "{bad:?}");
            }
        }
    }

    #[test]
    fn a_url_is_taken_only_when_it_looks_like_one() {
        let mut headers = complete();
        headers.insert(URL, HeaderValue::from_static("http://127.0.0.1:1"));
        let url = Caller::parse(&headers).expect("complete headers").url;
        assert_eq!(url.as_deref(), Some("http://127.0.0.1:1"));
        headers.insert(URL, HeaderValue::from_static("file:///etc/passwd"));
        assert_eq!(Caller::parse(&headers).expect("complete headers").url, None);
    }

    #[test]
    fn promises_are_four_numbers_or_not_there() {
        let said = Promises { term: 7, vote: 0, last: LogPosition { index: 41, term: 6 } };
        let (name, value) = promises_header(&said);
        let mut headers = complete();
        headers.insert(name, HeaderValue::from_str(&value).expect("a legal header value"));
        assert_eq!(Caller::parse(&headers).expect("complete headers").promises, Some(said));
        for bad in ["", "7 0 41", "7 0 41 6 1", "7 0 41 x", "7  41 6", "-7 0 41 6"] {
            headers.insert(name, HeaderValue::from_static(bad));
            assert!(Caller::parse(&headers).is_err_and(|why| why.contains(name)), "{bad:?}");
        }
    }
}
