//! The answer to a request that was not carried out.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{
        HeaderValue, Method, StatusCode,
        header::{ALLOW, CONTENT_TYPE, ETAG, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::Rejected,
    proto::{Refused, outcome::Result as Is},
};

/// What clients should wait before they try again, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Characters of a client's own text that an answer repeats.
const EXCERPT_CHARS: usize = 80;

/// A status with one line of JSON that says what happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    allow: Option<&'static str>,
    etag: Option<HeaderValue>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code, message: message.into(), allow: None, etag: None }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn empty_key() -> Self {
        Self::bad_request(
            "empty_key",
            "the key is empty; name it in the path, as in /my-key, or list all keys with /?list",
        )
    }

    pub(super) fn lease_not_found(id: i64) -> Self {
        Self::not_found(
            "lease_not_found",
            format!("there is no lease {id}, or it has expired; GET /-/leases lists them"),
        )
    }

    pub(super) fn key_not_found() -> Self {
        Self::not_found("key_not_found", "there is no such key; PUT it first")
    }

    pub(super) fn member_not_found(id: u64) -> Self {
        Self::not_found(
            "member_not_found",
            format!("there is no member {id}; GET /-/members lists them"),
        )
    }

    pub(super) fn method_not_allowed(method: &Method, allow: &'static str) -> Self {
        let method = excerpt(method.as_str());
        let message = format!("{method} is not possible here; use one of {allow}");
        let mut refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        refusal.allow = Some(allow);
        refusal
    }

    pub(super) fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// The condition did not hold; 0 when there is no such key.
    pub(super) fn precondition_failed(mod_revision: u64) -> Self {
        let (message, etag) = match mod_revision {
            0 => ("the condition does not hold: there is no such key".into(), None),
            revision => (
                format!(
                    "the condition does not hold: the key's ETag is \"{revision}\"; read it and retry"
                ),
                Some(etag(revision)),
            ),
        };
        let mut refusal =
            Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message);
        refusal.etag = etag;
        refusal
    }

    pub(crate) fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
    }

    pub(super) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    pub(super) fn internal(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
    }

    /// The answer as the last line of a body that had begun.
    pub(super) fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            error: Error<'a>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'a str,
            message: &'a str,
        }
        json_line(&Line { error: Error { code: self.code, message: &self.message } })
    }

    /// The status and the sentence, for an answer of another form.
    pub(crate) fn into_parts(self) -> (StatusCode, Cow<'static, str>) {
        (self.status, self.message)
    }

    /// The state machine answered something else than was asked.
    pub(super) fn unexpected(outcome: Option<Is>) -> Self {
        if let Some(Is::Refused(why)) = outcome {
            return Refused::try_from(why).unwrap_or_default().into();
        }
        Self::internal(
            "unexpected_outcome",
            format!("the store answered {outcome:?}; this is a defect, please report it"),
        )
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> &'static str {
        self.code
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::NotApplied(why) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_applied",
                format!("nothing was changed: {why}; retrying is safe"),
            ),
            Rejected::Unknown(why) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome_unknown",
                format!("it may or may not take effect: {why}; read before you retry"),
            ),
            Rejected::Overloaded(why) => {
                Self::overloaded(format!("nothing was changed: {why}; retry in a moment"))
            }
            Rejected::Conflict(why) => Self::conflict(why),
            Rejected::MemberNotFound(id) => Self::member_not_found(id),
            Rejected::Corrupt(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "corrupt",
                format!("nothing was changed: {rejected}"),
            ),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Compacted => Self::new(
                StatusCode::GONE,
                "compacted",
                "that revision was compacted away; go on with a newer one, GET /-/status names the newest",
            ),
            Refused::FutureRevision => Self::bad_request(
                "future_revision",
                "there is no such revision yet; GET /-/status names the newest",
            ),
            Refused::LeaseNotFound => Self::new(
                StatusCode::CONFLICT,
                "lease_not_found",
                "nothing was changed: there is no such lease, or it has expired; GET /-/leases lists them",
            ),
            Refused::LeaseExists => Self::new(
                StatusCode::CONFLICT,
                "lease_exists",
                "there is a lease of that id; choose another id, or none",
            ),
            Refused::KeyNotFound => Self::key_not_found(),
            Refused::NoSpace => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "no_space",
                "nothing was changed: the store is full; delete keys, compact, then disarm the NOSPACE alarm",
            ),
            Refused::InvalidOperation | Refused::Unspecified => Self::bad_request(
                "invalid_operation",
                "the store cannot carry this out; see the reference in the README",
            ),
            Refused::DeletionTooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "deletion_too_large",
                "nothing was changed: it would delete more than 256 MiB at once; delete it in parts",
            ),
            Refused::ResponseTooLarge => Self::bad_request(
                "response_too_large",
                "the answer would be too large for one piece; ask for less, or use ?list",
            ),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_body(self.status, self.line());
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(etag) = self.etag {
            headers.insert(ETAG, etag);
        }
        response
    }
}

/// What a body of JSON says; the example is shown to whoever sent another.
pub(super) fn from_json<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Refusal> {
    // An array would be taken for the values of an object in their order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::bad_request(
            "invalid_json",
            format!("the body is not an object of JSON; send {example}"),
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        Refusal::bad_request("invalid_json", format!("the body is wrong: {error}; send {example}"))
    })
}

/// One line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain structs of text and numbers serialise");
    line.push(b'\n');
    line
}

/// An answer of one line of JSON. Statuses that ask the client to come back say
/// when.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_body(status, json_line(value))
}

fn json_body(status: StatusCode, line: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(line));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    response
}

/// The entity tag of a mod_revision.
pub(super) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("quotes and digits are header text")
}

/// The beginning of a client's own text, for repeating it in an answer.
pub(super) fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let mut excerpt: String = chars.by_ref().take(EXCERPT_CHARS).collect();
    if chars.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(response: Response) -> String {
        let bytes = response.into_body().collect().await.expect("a body in memory").to_bytes();
        String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8")
    }

    #[tokio::test]
    async fn an_error_is_one_json_line() {
        let response = Refusal::bad_request("bad", "two\nlines and a \"quote\"").into_response();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(
            text(response).await,
            "{\"error\":{\"code\":\"bad\",\"message\":\"two\\nlines and a \\\"quote\\\"\"}}\n"
        );
    }

    #[test]
    fn rejections_keep_their_promise_in_the_status() {
        let status = |rejected: Rejected| Refusal::from(rejected).into_response();
        let not_applied = status(Rejected::NotApplied("no leader".into()));
        assert_eq!(not_applied.status(), 503);
        assert_eq!(not_applied.headers()[RETRY_AFTER], "1");
        let unknown = status(Rejected::Unknown("timed out".into()));
        assert_eq!(unknown.status(), 504);
        assert!(!unknown.headers().contains_key(RETRY_AFTER));
        let overloaded = status(Rejected::Overloaded("the log is behind".into()));
        assert_eq!(overloaded.status(), 429);
        assert_eq!(overloaded.headers()[RETRY_AFTER], "1");
        assert_eq!(status(Rejected::Conflict("in use".into())).status(), 409);
        assert_eq!(status(Rejected::MemberNotFound(4)).status(), 404);
        let corrupt = Refusal::from(Rejected::Corrupt(4));
        assert_eq!((corrupt.status().as_u16(), corrupt.code()), (503, "corrupt"));
    }

    #[test]
    fn a_405_lists_what_is_allowed() {
        let response = Refusal::method_not_allowed(&Method::PATCH, "GET, HEAD").into_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()[ALLOW], "GET, HEAD");
    }

    #[test]
    fn a_failed_condition_names_the_present_tag() {
        let response = Refusal::precondition_failed(7).into_response();
        assert_eq!(response.status(), 412);
        assert_eq!(response.headers()[ETAG], "\"7\"");
        assert!(!Refusal::precondition_failed(0).into_response().headers().contains_key(ETAG));
    }

    #[test]
    fn refusals_of_the_store_have_statuses() {
        for (refused, status, code) in [
            (Refused::Compacted, 410, "compacted"),
            (Refused::FutureRevision, 400, "future_revision"),
            (Refused::LeaseNotFound, 409, "lease_not_found"),
            (Refused::LeaseExists, 409, "lease_exists"),
            (Refused::KeyNotFound, 404, "key_not_found"),
            (Refused::NoSpace, 507, "no_space"),
            (Refused::InvalidOperation, 400, "invalid_operation"),
            (Refused::ResponseTooLarge, 400, "response_too_large"),
        ] {
            let refusal = Refusal::unexpected(Some(Is::Refused(refused.into())));
            assert_eq!((refusal.status().as_u16(), refusal.code()), (status, code));
        }
        assert_eq!(Refusal::unexpected(Some(Is::Refused(-1))).code(), "invalid_operation");
        assert_eq!(Refusal::unexpected(None).status(), 500);
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(excerpt("short"), "short");
        let long = "ё".repeat(200);
        assert_eq!(excerpt(&long).chars().count(), EXCERPT_CHARS + 1);
    }
}
