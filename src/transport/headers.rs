//! The headers by which members identify themselves to each other.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::RequestBuilder;

use crate::{
    proto::{Identity, LogPosition},
    raftlog::Promises,
    version::{PROTOCOL, Versions},
};

/// The protocols that the sender speaks, on requests and on answers.
pub(super) const SPEAKS: &str = "x-metastore-protocol";

/// The sender's cluster id; also on refusals, as the refusing member's.
pub(super) const CLUSTER: &str = "x-metastore-cluster";
/// The sender's member id.
pub(super) const FROM: &str = "x-metastore-from";
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

/// What members spoke before they said what they speak.
const UNSAID: Versions = Versions::new(1, 1);

/// Two that have no protocol in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strangers {
    /// What the other one said that it speaks.
    theirs: String,
    /// Whether it is this one that has to be upgraded.
    theirs_is_newer: bool,
}

impl Strangers {
    /// What is wrong and what to do, for the one that is to hear it: `this` and
    /// `other` name the two from there.
    pub(super) fn complaint(&self, this: &str, other: &str) -> String {
        let (theirs, older) = (&self.theirs, if self.theirs_is_newer { this } else { other });
        format!("{other} speaks protocol {theirs}, {this} speaks {PROTOCOL}: upgrade {older}")
    }
}

/// The headers of every request.
pub(super) fn said_always() -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(SPEAKS), spoken())])
}

/// What this program says that it speaks.
pub(super) fn spoken() -> HeaderValue {
    HeaderValue::try_from(PROTOCOL.to_string()).expect("digits are legal in a header")
}

/// Which protocols the sender of these headers speaks.
///
/// # Errors
/// When none of them is spoken here.
pub(super) fn speaks(headers: &HeaderMap) -> Result<Versions, Strangers> {
    let Some(value) = headers.get(SPEAKS) else { return check(UNSAID, UNSAID.to_string()) };
    let text = value.to_str().unwrap_or_default();
    // A form that is not known here can only be a newer one.
    let unheard = || Strangers { theirs: format!("{value:?}"), theirs_is_newer: true };
    check(Versions::parse(text).ok_or_else(unheard)?, text.to_owned())
}

fn check(theirs: Versions, text: String) -> Result<Versions, Strangers> {
    let theirs_is_newer = theirs.oldest() > PROTOCOL.newest();
    let common = theirs.common(PROTOCOL);
    common.map(|_| theirs).ok_or(Strangers { theirs: text, theirs_is_newer })
}

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
    fn who_says_nothing_speaks_what_was_spoken_first() {
        let mut headers = HeaderMap::new();
        assert_eq!(speaks(&headers), Ok(UNSAID));
        headers.insert(SPEAKS, spoken());
        assert_eq!(speaks(&headers), Ok(PROTOCOL));
        headers.insert(SPEAKS, HeaderValue::from_static("1-4000000000"));
        assert_eq!(speaks(&headers), Ok(Versions::new(1, 4_000_000_000)));
    }

    #[test]
    fn strangers_are_told_both_versions_and_whom_to_upgrade() {
        let mut headers = HeaderMap::new();
        let newer = PROTOCOL.newest() + 1;
        for (text, older) in [
            (newer.to_string(), "here"),
            (format!("{newer}-{}", newer + 1), "here"),
            ("0".to_owned(), "there"),
            ("many".to_owned(), "here"),
        ] {
            headers.insert(SPEAKS, HeaderValue::try_from(&text).expect("legal"));
            let complaint = speaks(&headers).expect_err(&text).complaint("here", "there");
            assert!(complaint.contains(&text), "{complaint}");
            assert!(complaint.contains(&format!("here speaks {PROTOCOL}: ")), "{complaint}");
            assert!(complaint.ends_with(&format!(": upgrade {older}")), "{complaint}");
        }
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
