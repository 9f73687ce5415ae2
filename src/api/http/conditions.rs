//! If-Match and If-None-Match (RFC 9110, section 13.1) on mod_revisions.

use axum::http::{
    HeaderMap, HeaderName,
    header::{IF_MATCH, IF_NONE_MATCH},
};

use super::refusal::Refusal;
use crate::proto::Condition;

/// Tags one header may list: the condition travels in the log entry, where
/// each costs up to ten bytes.
const MAX_TAGS: usize = 1_024;

/// A mod_revision no key ever has; keys begin at 2 and count up by one.
const UNREACHABLE_REVISION: u64 = u64::MAX;

/// What one header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// The revisions that are listed. Tags that no revision is written as are
    /// left out: they match nothing.
    Listed(Vec<u64>),
}

/// The conditions of one request; all of them must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// What the conditions mean for reading a key that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send the value.
    Proceed,
    /// The client has it already.
    NotModified,
    /// It is not what the client expects.
    Failed,
}

impl Conditions {
    /// The conditions a request carries.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self {
            if_match: parse_header(headers, &IF_MATCH)?,
            if_none_match: parse_header(headers, &IF_NONE_MATCH)?,
        })
    }

    /// The conditions as a write carries them through the log.
    pub(super) fn for_write(self) -> Option<Condition> {
        if self == Self::default() {
            return None;
        }
        let mut condition = Condition::default();
        match self.if_match {
            None => {}
            Some(Tags::Any) => condition.exists = true,
            Some(Tags::Listed(revisions)) if revisions.is_empty() => {
                // An empty list would be no condition at all.
                condition.mod_revisions = vec![UNREACHABLE_REVISION];
            }
            Some(Tags::Listed(revisions)) => condition.mod_revisions = revisions,
        }
        match self.if_none_match {
            None => {}
            Some(Tags::Any) => condition.absent = true,
            Some(Tags::Listed(revisions)) => condition.not_mod_revisions = revisions,
        }
        Some(condition)
    }

    /// Evaluates the conditions of a read of a key that exists.
    pub(super) fn for_read(&self, mod_revision: u64) -> Verdict {
        let matches = |tags: &Tags| match tags {
            Tags::Any => true,
            Tags::Listed(revisions) => revisions.contains(&mod_revision),
        };
        if self.if_match.as_ref().is_some_and(|tags| !matches(tags)) {
            Verdict::Failed
        } else if self.if_none_match.as_ref().is_some_and(matches) {
            Verdict::NotModified
        } else {
            Verdict::Proceed
        }
    }
}

fn parse_header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Refusal> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let malformed = |why: &str| {
        Refusal::bad_request(
            "invalid_condition",
            format!("{name}: {why}; it is either * or a list like \"12\", \"15\""),
        )
    };
    let mut any = false;
    let mut tags = 0;
    let mut revisions = Vec::new();
    for line in headers.get_all(name) {
        let mut rest = line.as_bytes();
        while let Some((element, after)) = next_element(rest).map_err(&malformed)? {
            tags += 1;
            match element {
                Element::Any => any = true,
                Element::Tag(opaque) => revisions.extend(revision(opaque)),
            }
            rest = after;
        }
    }
    match (any, tags) {
        (_, 0) => Err(malformed("it is empty")),
        (true, 1) => Ok(Some(Tags::Any)),
        (true, _) => Err(malformed("* stands alone")),
        (false, tags) if tags > MAX_TAGS => Err(malformed("it lists too many tags")),
        (false, _) => Ok(Some(Tags::Listed(revisions))),
    }
}

enum Element<'a> {
    Any,
    Tag(&'a [u8]),
}

/// The next element of a comma list and what follows it. Empty elements are
/// passed over, as RFC 9110 (5.6.1) wants of recipients.
fn next_element(line: &[u8]) -> Result<Option<(Element<'_>, &[u8])>, &'static str> {
    let is_between = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
    let Some(start) = line.iter().position(|byte| !is_between(byte)) else { return Ok(None) };
    let (element, after) = match &line[start..] {
        [b'*', after @ ..] => (Element::Any, after),
        [b'W', b'/', ..] => return Err("weak tags never match here"),
        [b'"', quoted @ ..] => {
            let end = quoted
                .iter()
                .position(|&byte| byte == b'"')
                .ok_or("a tag's closing quote is missing")?;
            let (opaque, after) = (&quoted[..end], &quoted[end + 1..]);
            if opaque.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
                return Err("a tag holds a space or a control character");
            }
            (Element::Tag(opaque), after)
        }
        _ => return Err("a tag is not in quotes"),
    };
    let tail = after.trim_ascii_start();
    if tail.first().is_some_and(|&byte| byte != b',') {
        return Err("tags are separated by commas");
    }
    Ok(Some((element, after)))
}

/// The revision a tag names. Tags are compared octet by octet, so only the
/// very form that an ETag header has names one.
fn revision(opaque: &[u8]) -> Option<u64> {
    let revision: u64 = std::str::from_utf8(opaque).ok()?.parse().ok()?;
    (revision > 0 && revision.to_string().as_bytes() == opaque).then_some(revision)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers
                .append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
        }
        headers
    }

    fn if_match(lines: &[&str]) -> Result<Conditions, Refusal> {
        let lines: Vec<_> = lines.iter().map(|line| (IF_MATCH, *line)).collect();
        Conditions::parse(&headers(&lines))
    }

    fn listed(lines: &[&str]) -> Vec<u64> {
        match if_match(lines).expect("well-formed").if_match {
            Some(Tags::Listed(revisions)) => revisions,
            other => panic!("not a list: {other:?}"),
        }
    }

    #[test]
    fn lists_of_tags() {
        assert_eq!(listed(&["\"5\""]), [5]);
        assert_eq!(listed(&["\"5\",\"6\" ,\t\"7\""]), [5, 6, 7]);
        assert_eq!(listed(&[", \"5\",, ,\"6\","]), [5, 6]);
        assert_eq!(listed(&["\"5\"", "\"6\", \"7\""]), [5, 6, 7]);
        assert_eq!(if_match(&["*"]).expect("any").if_match, Some(Tags::Any));
        assert_eq!(if_match(&[" * "]).expect("any").if_match, Some(Tags::Any));
    }

    #[test]
    fn well_formed_tags_that_are_no_revision_match_nothing() {
        for tag in ["abc", "", "0", "007", "+7", "7x", "18446744073709551616", "a,b", "W/", "é"] {
            assert_eq!(listed(&[&format!("\"{tag}\"")]), [0; 0], "{tag}");
        }
        assert_eq!(listed(&["\"abc\", \"7\""]), [7]);
    }

    #[test]
    fn malformed_headers_are_refused() {
        let many = "\"1\",".repeat(MAX_TAGS + 1);
        for line in [
            "",
            " ",
            ",",
            "5",
            "\"5",
            "5\"",
            "\"5\"\"6\"",
            "\"5\" \"6\"",
            "\"5\";\"6\"",
            "'5'",
            "W/\"5\"",
            "w/\"5\"",
            "\"5\", W/\"6\"",
            "*, \"5\"",
            "\"5\", *",
            "*,*",
            "**",
            "*\"5\"",
            "\"a b\"",
            "\"a\tb\"",
            "\"5\", x",
            &many,
        ] {
            let refusal = if_match(&[line]).expect_err(line);
            assert_eq!((refusal.status().as_u16(), refusal.code()), (400, "invalid_condition"));
        }
        assert!(if_match(&["*", "\"5\""]).is_err());
        assert!(if_match(&["\"5", "6\""]).is_err(), "a quote does not span lines");
        assert!(Conditions::parse(&headers(&[(IF_NONE_MATCH, "W/\"5\"")])).is_err());
    }

    #[test]
    fn conditions_of_writes() {
        let parse = |lines: &[(HeaderName, &str)]| {
            Conditions::parse(&headers(lines)).expect("well-formed").for_write()
        };
        assert_eq!(parse(&[]), None);
        assert_eq!(
            parse(&[(IF_MATCH, "*")]),
            Some(Condition { exists: true, ..Condition::default() })
        );
        assert_eq!(
            parse(&[(IF_NONE_MATCH, "*")]),
            Some(Condition { absent: true, ..Condition::default() })
        );
        assert_eq!(
            parse(&[(IF_MATCH, "\"5\", \"6\""), (IF_NONE_MATCH, "\"7\"")]),
            Some(Condition {
                mod_revisions: vec![5, 6],
                not_mod_revisions: vec![7],
                ..Condition::default()
            })
        );
        let never = parse(&[(IF_MATCH, "\"abc\"")]).expect("a condition");
        assert_eq!(never.mod_revisions, [UNREACHABLE_REVISION]);
        assert_eq!(parse(&[(IF_NONE_MATCH, "\"abc\"")]), Some(Condition::default()));
    }

    #[test]
    fn conditions_of_reads() {
        let verdict = |lines: &[(HeaderName, &str)]| {
            Conditions::parse(&headers(lines)).expect("well-formed").for_read(7)
        };
        assert_eq!(verdict(&[]), Verdict::Proceed);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"6\", \"7\"")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "*")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"6\"")]), Verdict::Proceed);
        assert_eq!(verdict(&[(IF_MATCH, "\"7\"")]), Verdict::Proceed);
        assert_eq!(verdict(&[(IF_MATCH, "*")]), Verdict::Proceed);
        assert_eq!(verdict(&[(IF_MATCH, "\"6\"")]), Verdict::Failed);
        assert_eq!(verdict(&[(IF_MATCH, "\"abc\"")]), Verdict::Failed);
        assert_eq!(verdict(&[(IF_MATCH, "\"6\""), (IF_NONE_MATCH, "*")]), Verdict::Failed);
    }
}
