//! `POST /-/txn`: transactions that people can write by hand.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, request::Parts},
    response::Response,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    keys::REVISION,
    listing::prefix_range,
    options,
    pair::{Pair, given},
    refusal::{Refusal, from_json, json},
};
use crate::proto::{
    command::Op,
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
        TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response as Answer,
    },
    outcome::Result as Is,
};

/// Conditions, and operations of a branch, that a transaction may have.
const MAX_OPERATIONS: usize = 128;

/// The most bytes that a transaction that only reads may answer.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

const EXAMPLE: &str = r#"{"compare":[{"key":"a","value":"1"}],"then":[{"put":{"key":"a","value":"2"}}],"else":[{"get":{"key":"a"}}]}"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    compare: Vec<CompareForm>,
    #[serde(default)]
    then: Vec<OperationForm>,
    #[serde(default, rename = "else")]
    otherwise: Vec<OperationForm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareForm {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    prefix: bool,
    range_end: Option<String>,
    range_end_base64: Option<String>,
    is: Option<Relation>,
    value: Option<String>,
    value_base64: Option<String>,
    version: Option<i64>,
    create_revision: Option<i64>,
    mod_revision: Option<i64>,
    lease: Option<i64>,
    exists: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Relation {
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OperationForm {
    Put(PutForm),
    Get(GetForm),
    Delete(DeleteForm),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutForm {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    #[serde(default)]
    lease: i64,
    #[serde(default)]
    prev: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetForm {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    prefix: bool,
    range_end: Option<String>,
    range_end_base64: Option<String>,
    limit: Option<i64>,
    revision: Option<i64>,
    #[serde(default)]
    keys_only: bool,
    #[serde(default)]
    count_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteForm {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    prefix: bool,
    range_end: Option<String>,
    range_end_base64: Option<String>,
    #[serde(default)]
    prev: bool,
}

/// A key.
fn key(text: Option<String>, base64: Option<String>) -> Result<Bytes, Refusal> {
    let key = given("key", text, base64)?.ok_or_else(|| malformed("a key is missing"))?;
    if key.is_empty() {
        return Err(Refusal::bad_request(
            "empty_key",
            "a key is empty; name it, also where a prefix is meant",
        ));
    }
    Ok(key)
}

/// The end of the range that begins with the key; empty for the key alone.
fn range_end(
    key: &Bytes,
    prefix: bool,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Bytes, Refusal> {
    match (prefix, given("range_end", text, base64)?) {
        (true, None) => Ok(prefix_range(key).1),
        (false, None) => Ok(Bytes::new()),
        (false, Some(end)) if !end.is_empty() => Ok(end),
        (false, Some(_)) => Err(malformed("range_end is empty; leave it out")),
        (true, Some(_)) => Err(malformed("both prefix and range_end are given; give one")),
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal::bad_request("invalid_txn", format!("{why}; a transaction is like {EXAMPLE}"))
}

/// A number that must be at least 1 if it is given; 0 if not.
fn from_one(name: &str, number: Option<i64>) -> Result<i64, Refusal> {
    match number {
        None => Ok(0),
        Some(number) if number >= 1 => Ok(number),
        Some(number) => Err(malformed(&format!("{name} is {number}, it starts at 1"))),
    }
}

impl CompareForm {
    fn into_request(self) -> Result<Compare, Refusal> {
        let key = key(self.key, self.key_base64)?;
        let range_end = range_end(&key, self.prefix, self.range_end, self.range_end_base64)?;
        let value = given("value", self.value, self.value_base64)?;
        let mut targets = [
            value.map(|value| (CompareTarget::Value, TargetUnion::Value(value))),
            self.version.map(|n| (CompareTarget::Version, TargetUnion::Version(n))),
            self.create_revision.map(|n| (CompareTarget::Create, TargetUnion::CreateRevision(n))),
            self.mod_revision.map(|n| (CompareTarget::Mod, TargetUnion::ModRevision(n))),
            self.lease.map(|n| (CompareTarget::Lease, TargetUnion::Lease(n))),
            // What does not exist was created at revision 0.
            self.exists.map(|_| (CompareTarget::Create, TargetUnion::CreateRevision(0))),
        ]
        .into_iter()
        .flatten();
        let (Some((target, target_union)), None) = (targets.next(), targets.next()) else {
            return Err(malformed(
                "a comparison needs one of value, version, create_revision, mod_revision, lease \
                 and exists",
            ));
        };
        let result = match (self.exists, self.is) {
            (Some(true), None) => CompareResult::Greater,
            (Some(false), None) | (None, None | Some(Relation::Equal)) => CompareResult::Equal,
            (None, Some(Relation::NotEqual)) => CompareResult::NotEqual,
            (None, Some(Relation::Less)) => CompareResult::Less,
            (None, Some(Relation::Greater)) => CompareResult::Greater,
            (Some(_), Some(_)) => return Err(malformed("exists is true or false, without is")),
        };
        Ok(Compare {
            key,
            range_end,
            result: result.into(),
            target: target.into(),
            target_union: Some(target_union),
        })
    }
}

impl OperationForm {
    fn into_request(self) -> Result<RequestOp, Refusal> {
        let request = match self {
            Self::Put(put) => Request::RequestPut(PutRequest {
                key: key(put.key, put.key_base64)?,
                value: given("value", put.value, put.value_base64)?
                    .ok_or_else(|| malformed("a put needs a value, which may be empty"))?,
                lease: put.lease,
                prev_kv: put.prev,
                ..PutRequest::default()
            }),
            Self::Get(get) => {
                let key = key(get.key, get.key_base64)?;
                Request::RequestRange(RangeRequest {
                    range_end: range_end(&key, get.prefix, get.range_end, get.range_end_base64)?,
                    key,
                    limit: from_one("limit", get.limit)?,
                    revision: from_one("revision", get.revision)?,
                    keys_only: get.keys_only,
                    count_only: get.count_only,
                    ..RangeRequest::default()
                })
            }
            Self::Delete(delete) => {
                let key = key(delete.key, delete.key_base64)?;
                let end =
                    range_end(&key, delete.prefix, delete.range_end, delete.range_end_base64)?;
                let prev_kv = delete.prev;
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end: end, prev_kv })
            }
        };
        Ok(RequestOp { request: Some(request) })
    }
}

/// A transaction as it was written, checked.
fn parse(body: &[u8]) -> Result<TxnRequest, Refusal> {
    let form: Form = from_json(body, EXAMPLE)?;
    let longest = form.compare.len().max(form.then.len()).max(form.otherwise.len());
    if longest > MAX_OPERATIONS {
        return Err(Refusal::bad_request(
            "too_many_operations",
            format!("{longest} comparisons or operations; at most {MAX_OPERATIONS} are taken"),
        ));
    }
    let operations = |forms: Vec<OperationForm>| {
        let operations = forms.into_iter().map(OperationForm::into_request);
        let operations = operations.collect::<Result<Vec<_>, _>>()?;
        check_duplicates(&operations).map(|()| operations)
    };
    let compare = form.compare.into_iter().map(CompareForm::into_request);
    Ok(TxnRequest {
        compare: compare.collect::<Result<_, _>>()?,
        success: operations(form.then)?,
        failure: operations(form.otherwise)?,
    })
}

/// Refuses a branch that changes a key twice: one revision holds one change.
fn check_duplicates(operations: &[RequestOp]) -> Result<(), Refusal> {
    let mut puts = BTreeSet::<&Bytes>::new();
    let requests = || operations.iter().filter_map(|operation| operation.request.as_ref());
    for request in requests() {
        if let Request::RequestPut(put) = request
            && !puts.insert(&put.key)
        {
            return Err(duplicate_key(&put.key));
        }
    }
    for request in requests() {
        if let Request::RequestDeleteRange(delete) = request {
            let inside = puts.range::<&Bytes, _>(&delete.key..).next();
            let inside = inside.filter(|key| match &delete.range_end[..] {
                [] => delete.key == **key,
                [0] => true,
                end => ***key < *end,
            });
            if let Some(key) = inside {
                return Err(duplicate_key(key));
            }
        }
    }
    Ok(())
}

fn duplicate_key(key: &Bytes) -> Refusal {
    let key = super::refusal::excerpt(&String::from_utf8_lossy(key));
    Refusal::bad_request(
        "duplicate_key",
        format!("{key:?} is changed twice in one branch; change each key once"),
    )
}

fn writes(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|operation| {
        matches!(operation.request, Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)))
    })
}

/// Answers POST /-/txn.
pub(super) async fn answer(api: &Api, head: &Parts, body: Body) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let body = api.bodies.read(head, body, api.max_request_bytes).await?;
    let request = parse(&body.bytes)?;
    let keys_only = [&request.success, &request.failure].map(|branch| keys_only(branch));
    if writes(&request) {
        return match api.submit(Op::Txn(request)).await?.result {
            Some(Is::Txn(done)) => Ok(render(&done, &keys_only)),
            other => Err(Refusal::unexpected(other)),
        };
    }
    let view = api.handle.read().await?;
    let read = move || view.txn(&request, MAX_RESPONSE_BYTES);
    api.keep(api.read_aside(move || Ok(read()?.map(|done| render(&done, &keys_only)))).await??)
}

/// Which operations of a branch ask for keys without values.
fn keys_only(branch: &[RequestOp]) -> Vec<bool> {
    let asks = |operation: &RequestOp| matches!(&operation.request, Some(Request::RequestRange(range)) if range.keys_only);
    branch.iter().map(asks).collect()
}

#[derive(Serialize)]
struct DoneView<'a> {
    succeeded: bool,
    revision: i64,
    results: Vec<ResultView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ResultView<'a> {
    Put {
        #[serde(skip_serializing_if = "Option::is_none")]
        prev: Option<Pair<'a>>,
    },
    Get {
        count: i64,
        more: bool,
        kvs: Vec<Pair<'a>>,
    },
    Delete {
        deleted: i64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        prev: Vec<Pair<'a>>,
    },
}

/// The answer, given which operations of each branch ask for keys alone.
fn render(done: &TxnResponse, [success, failure]: &[Vec<bool>; 2]) -> Response {
    let keys_only = if done.succeeded { success } else { failure };
    let revision = done.header.as_ref().map_or(0, |header| header.revision);
    let results = done.responses.iter().zip(keys_only);
    let results = results.filter_map(|(response, keys_only)| result(response, *keys_only));
    let results = results.collect();
    let view = DoneView { succeeded: done.succeeded, revision, results };
    let mut response = json(StatusCode::OK, &view);
    response.headers_mut().insert(REVISION, HeaderValue::from(revision));
    response
}

fn result(response: &ResponseOp, keys_only: bool) -> Option<ResultView<'_>> {
    let pair = |kv| Pair { kv, keys_only };
    Some(match response.response.as_ref()? {
        Answer::ResponsePut(put) => ResultView::Put { prev: put.prev_kv.as_ref().map(pair) },
        Answer::ResponseRange(range) => ResultView::Get {
            count: range.count,
            more: range.more,
            kvs: range.kvs.iter().map(pair).collect(),
        },
        Answer::ResponseDeleteRange(delete) => ResultView::Delete {
            deleted: delete.deleted,
            prev: delete.prev_kvs.iter().map(pair).collect(),
        },
        // Nested transactions cannot be asked for here.
        Answer::ResponseTxn(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        etcdserverpb::{DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader},
        mvccpb::KeyValue,
    };

    fn code(body: &str) -> &'static str {
        parse(body.as_bytes()).expect_err(body).code()
    }

    fn compare(body: &str) -> Compare {
        let body = format!("{{\"compare\":[{body}]}}");
        let request = parse(body.as_bytes()).unwrap_or_else(|why| panic!("{body}: {why:?}"));
        request.compare.into_iter().next().expect("one comparison")
    }

    #[test]
    fn what_is_compared_with_what() {
        use CompareResult as Is;
        for (body, target, result, value) in [
            (r#""value":"1""#, CompareTarget::Value, Is::Equal, TargetUnion::Value("1".into())),
            (
                r#""is":"!=","value_base64":"/w==""#,
                CompareTarget::Value,
                Is::NotEqual,
                TargetUnion::Value(Bytes::from_static(b"\xff")),
            ),
            (r#""version":0"#, CompareTarget::Version, Is::Equal, TargetUnion::Version(0)),
            (
                r#""is":"<","create_revision":5"#,
                CompareTarget::Create,
                Is::Less,
                TargetUnion::CreateRevision(5),
            ),
            (
                r#""is":">","mod_revision":5"#,
                CompareTarget::Mod,
                Is::Greater,
                TargetUnion::ModRevision(5),
            ),
            (r#""is":"=","lease":-5"#, CompareTarget::Lease, Is::Equal, TargetUnion::Lease(-5)),
            (
                r#""exists":true"#,
                CompareTarget::Create,
                Is::Greater,
                TargetUnion::CreateRevision(0),
            ),
            (r#""exists":false"#, CompareTarget::Create, Is::Equal, TargetUnion::CreateRevision(0)),
        ] {
            let compare = compare(&format!("{{\"key\":\"a\",{body}}}"));
            assert_eq!((&compare.key[..], &compare.range_end[..]), (&b"a"[..], &b""[..]));
            assert_eq!((compare.target(), compare.result()), (target, result), "{body}");
            assert_eq!(compare.target_union, Some(value), "{body}");
        }
        let range = compare(r#"{"key_base64":"/w==","range_end":"\u0000","exists":false}"#);
        assert_eq!((&range.key[..], &range.range_end[..]), (&b"\xff"[..], &b"\0"[..]));
        assert_eq!(compare(r#"{"key":"a","prefix":true,"exists":false}"#).range_end, "b");
    }

    #[test]
    fn both_branches_become_requests_in_order() {
        let body = r#"{"then":[
            {"put":{"key":"a","value":"","lease":7,"prev":true}},
            {"get":{"key":"b","prefix":true,"limit":3,"revision":9,"keys_only":true}},
            {"delete":{"key":"c","range_end":"e","prev":true}}
        ],"else":[{"get":{"key_base64":"YQ==","count_only":true}}]}"#;
        let request = parse(body.as_bytes()).expect("well-formed");
        assert_eq!(
            request.success.into_iter().filter_map(|op| op.request).collect::<Vec<_>>(),
            [
                Request::RequestPut(PutRequest {
                    key: "a".into(),
                    lease: 7,
                    prev_kv: true,
                    ..PutRequest::default()
                }),
                Request::RequestRange(RangeRequest {
                    key: "b".into(),
                    range_end: "c".into(),
                    limit: 3,
                    revision: 9,
                    keys_only: true,
                    ..RangeRequest::default()
                }),
                Request::RequestDeleteRange(DeleteRangeRequest {
                    key: "c".into(),
                    range_end: "e".into(),
                    prev_kv: true,
                }),
            ]
        );
        let [RequestOp { request: Some(Request::RequestRange(range)) }] = &request.failure[..]
        else {
            panic!("{:?}", request.failure);
        };
        assert_eq!((&range.key[..], range.count_only), (&b"a"[..], true));
        assert_eq!(parse(b"{}"), Ok(TxnRequest::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for (body, expected) in [
            ("", "invalid_json"),
            ("[]", "invalid_json"),
            (r#"{"if":[]}"#, "invalid_json"),
            (r#"{"then":[{"put":{"key":"a","value":1}}]}"#, "invalid_json"),
            (r#"{"then":[{"put":{"key":"a","value":"1","ttl":5}}]}"#, "invalid_json"),
            (r#"{"then":[{"put":{"key":"a","value":"1"},"get":{"key":"a"}}]}"#, "invalid_json"),
            (r#"{"then":[{"txn":{}}]}"#, "invalid_json"),
            (r#"{"compare":[{"key":"a","is":"==","value":"1"}]}"#, "invalid_json"),
            (r#"{"then":[{"get":{"key":"a","key_base64":"YQ=="}}]}"#, "invalid_json"),
            (r#"{"then":[{"get":{"key_base64":"?"}}]}"#, "invalid_base64"),
            (r#"{"then":[{"get":{}}]}"#, "invalid_txn"),
            (r#"{"then":[{"get":{"key":""}}]}"#, "empty_key"),
            (r#"{"then":[{"delete":{"key":"","prefix":true}}]}"#, "empty_key"),
            (r#"{"then":[{"put":{"key":"a"}}]}"#, "invalid_txn"),
            (r#"{"then":[{"get":{"key":"a","limit":0}}]}"#, "invalid_txn"),
            (r#"{"then":[{"get":{"key":"a","revision":-1}}]}"#, "invalid_txn"),
            (r#"{"then":[{"get":{"key":"a","range_end":""}}]}"#, "invalid_txn"),
            (r#"{"then":[{"get":{"key":"a","prefix":true,"range_end":"b"}}]}"#, "invalid_txn"),
            (r#"{"compare":[{"key":"a"}]}"#, "invalid_txn"),
            (r#"{"compare":[{"key":"a","value":"1","version":1}]}"#, "invalid_txn"),
            (r#"{"compare":[{"key":"a","exists":true,"is":"="}]}"#, "invalid_txn"),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
    }

    #[test]
    fn operations_are_bounded() {
        let many = |n| {
            let gets = vec![r#"{"get":{"key":"a"}}"#; n].join(",");
            format!("{{\"else\":[{gets}]}}")
        };
        assert!(parse(many(MAX_OPERATIONS).as_bytes()).is_ok());
        assert_eq!(code(&many(MAX_OPERATIONS + 1)), "too_many_operations");
    }

    #[test]
    fn a_branch_changes_a_key_once() {
        let put = |key: &str| format!(r#"{{"put":{{"key":"{key}","value":""}}}}"#);
        let delete = |rest: &str| format!(r#"{{"delete":{{{rest}}}}}"#);
        let then = |operations: &[String]| format!("{{\"then\":[{}]}}", operations.join(","));
        for twice in [
            [put("a"), put("a")],
            [put("a"), delete(r#""key":"a""#)],
            [delete(r#""key":"a","prefix":true"#), put("ab")],
            [put("z"), delete(r#""key":"a","range_end":"\u0000""#)],
            [put("b"), delete(r#""key":"a","range_end":"c""#)],
        ] {
            assert_eq!(code(&then(&twice)), "duplicate_key", "{twice:?}");
        }
        for once in [
            [put("a"), put("b")],
            [put("a"), delete(r#""key":"b""#)],
            [put("c"), delete(r#""key":"a","range_end":"c""#)],
            [put("a"), delete(r#""key":"b","range_end":"\u0000""#)],
            [delete(r#""key":"a""#), delete(r#""key":"a","prefix":true"#)],
        ] {
            assert!(parse(then(&once).as_bytes()).is_ok(), "{once:?}");
        }
        let branches = format!("{{\"then\":[{}],\"else\":[{}]}}", put("a"), put("a"));
        assert!(parse(branches.as_bytes()).is_ok());
    }

    #[tokio::test]
    async fn results_stand_in_the_order_of_the_operations() {
        use http_body_util::BodyExt;
        let kv = KeyValue { key: "a".into(), value: "1".into(), version: 1, ..KeyValue::default() };
        let answers = [
            Answer::ResponsePut(PutResponse::default()),
            Answer::ResponsePut(PutResponse {
                prev_kv: Some(kv.clone()),
                ..PutResponse::default()
            }),
            Answer::ResponseRange(RangeResponse {
                kvs: vec![kv.clone()],
                more: true,
                count: 2,
                ..RangeResponse::default()
            }),
            Answer::ResponseDeleteRange(DeleteRangeResponse {
                deleted: 3,
                ..DeleteRangeResponse::default()
            }),
        ];
        let response = |answer| ResponseOp { response: Some(answer) };
        let done = TxnResponse {
            header: Some(ResponseHeader { revision: 9, ..ResponseHeader::default() }),
            succeeded: true,
            responses: answers.into_iter().map(response).collect(),
        };
        let rendered = render(&done, &[vec![false, false, true, false], Vec::new()]);
        assert_eq!(rendered.headers()["x-metastore-revision"], "9");
        let body = rendered.into_body().collect().await.expect("in memory").to_bytes();
        let numbers = "\"create_revision\":0,\"mod_revision\":0,\"version\":1,\"lease\":0";
        let expected = format!(
            "{{\"succeeded\":true,\"revision\":9,\"results\":[{{\"put\":{{}}}},\
             {{\"put\":{{\"prev\":{{\"key\":\"a\",\"value\":\"1\",{numbers}}}}}}},\
             {{\"get\":{{\"count\":2,\"more\":true,\"kvs\":[{{\"key\":\"a\",{numbers}}}]}}}},\
             {{\"delete\":{{\"deleted\":3}}}}]}}\n"
        );
        assert_eq!(body, expected.as_bytes());
    }
}
