//! What a client asks, in either protocol.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use metastore_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request as Op,
};
use prost::Message;
use tokio::time::timeout;

use crate::{failure::Trouble, grpc, keys::end_of, plain};

/// An answer that takes longer counts as none.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The methods of etcd that are called.
mod path {
    use crate::grpc::Path;

    pub const PUT: Path = "/etcdserverpb.KV/Put";
    pub const RANGE: Path = "/etcdserverpb.KV/Range";
    pub const TXN: Path = "/etcdserverpb.KV/Txn";
}

/// What a read may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Consistency {
    /// Everything acknowledged before.
    Linearizable,
    /// What the member that is asked knows, which may be behind.
    Serializable,
}

/// What came of a write that depends on a key's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapped {
    /// The key was written at this revision.
    Yes(u64),
    /// The key's last change is of another revision; 0 when it does not exist.
    No(u64),
}

/// One client of one member.
#[derive(Debug)]
pub enum Session {
    /// etcd's API.
    Grpc(grpc::Client),
    /// The API for curl.
    Plain(plain::Client),
}

impl Session {
    /// Writes a key.
    ///
    /// # Errors
    /// When it was refused or no answer came.
    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<u64, Trouble> {
        in_time(async {
            match self {
                Self::Grpc(client) => {
                    let put = PutRequest { key, value, ..PutRequest::default() };
                    let answer = client.unary(path::PUT, &put).await?;
                    Headed::read(answer)
                }
                Self::Plain(client) => {
                    let path = path_of(&key);
                    let answer = client.ask(Method::PUT, &path, None, value).await?;
                    match answer.status {
                        StatusCode::NO_CONTENT => answer.revision(&plain::REVISION),
                        _ => Err(answer.refused()),
                    }
                }
            }
        })
        .await
    }

    /// Reads a key; whether it exists.
    ///
    /// # Errors
    /// As [`Session::put`].
    pub async fn get(&mut self, key: Bytes, consistency: Consistency) -> Result<bool, Trouble> {
        in_time(async {
            match self {
                Self::Grpc(client) => {
                    let range = RangeRequest { key, ..range(consistency) };
                    Counted::read(client.unary(path::RANGE, &range).await?).map(|count| count == 1)
                }
                Self::Plain(client) => {
                    let path = path_of(&key) + &shown(consistency, "?");
                    let answer = client.ask(Method::GET, &path, None, Bytes::new()).await?;
                    match answer.status {
                        StatusCode::OK => Ok(true),
                        StatusCode::NOT_FOUND => Ok(false),
                        _ => Err(answer.refused()),
                    }
                }
            }
        })
        .await
    }

    /// Reads all keys with a prefix; how many there are.
    ///
    /// # Errors
    /// As [`Session::put`].
    pub async fn list(&mut self, prefix: Bytes, consistency: Consistency) -> Result<u64, Trouble> {
        in_time(async {
            match self {
                Self::Grpc(client) => {
                    let range_end = end_of(&prefix);
                    let range = RangeRequest { key: prefix, range_end, ..range(consistency) };
                    Counted::read(client.unary(path::RANGE, &range).await?)
                }
                Self::Plain(client) => {
                    let path = path_of(&prefix) + "?list" + &shown(consistency, "&");
                    let answer = client.ask(Method::GET, &path, None, Bytes::new()).await?;
                    match answer.status {
                        // A line for each key.
                        StatusCode::OK => Ok(count_lines(&answer.content)),
                        _ => Err(answer.refused()),
                    }
                }
            }
        })
        .await
    }

    /// How many keys begin with a prefix; over gRPC only.
    ///
    /// # Errors
    /// As [`Session::put`].
    pub async fn count(&mut self, prefix: Bytes) -> Result<u64, Trouble> {
        let Self::Grpc(client) = self else {
            return Err(Trouble::broken("keys are counted over gRPC only"));
        };
        let range_end = end_of(&prefix);
        let all = RangeRequest { key: prefix, range_end, ..range(Consistency::Linearizable) };
        let count = RangeRequest { count_only: true, ..all };
        in_time(async { Counted::read(client.unary(path::RANGE, &count).await?) }).await
    }

    /// Writes a key if its last change is of the revision `known`, 0 for none;
    /// with gRPC reads the key otherwise, as Kubernetes does.
    ///
    /// # Errors
    /// As [`Session::put`].
    pub async fn swap(&mut self, key: Bytes, value: Bytes, known: u64) -> Result<Swapped, Trouble> {
        in_time(async {
            match self {
                Self::Grpc(client) => {
                    let answer = client.unary(path::TXN, &swap(key, value, known)).await?;
                    SwapAnswer::read(answer)
                }
                Self::Plain(client) => {
                    let condition = match known {
                        0 => (header::IF_NONE_MATCH, "*".to_owned()),
                        known => (header::IF_MATCH, format!("\"{known}\"")),
                    };
                    let path = path_of(&key);
                    let answer = client.ask(Method::PUT, &path, Some(condition), value).await?;
                    match answer.status {
                        StatusCode::NO_CONTENT => {
                            answer.revision(&plain::REVISION).map(Swapped::Yes)
                        }
                        // Without its tag there is no key.
                        StatusCode::PRECONDITION_FAILED => {
                            Ok(Swapped::No(answer.revision(&header::ETAG).unwrap_or(0)))
                        }
                        _ => Err(answer.refused()),
                    }
                }
            }
        })
        .await
    }
}

async fn in_time<T>(asking: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(ANSWER_LIMIT, asking).await.unwrap_or(Err(Trouble::Late))
}

/// Keys of a run need no escapes.
fn path_of(key: &[u8]) -> String {
    format!("/{}", key.escape_ascii())
}

/// What a query says of what it may show, after this.
fn shown(consistency: Consistency, separator: &str) -> String {
    match consistency {
        Consistency::Linearizable => String::new(),
        Consistency::Serializable => format!("{separator}consistency=stale"),
    }
}

fn count_lines(content: &[u8]) -> u64 {
    content.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn range(consistency: Consistency) -> RangeRequest {
    let serializable = consistency == Consistency::Serializable;
    RangeRequest { serializable, ..RangeRequest::default() }
}

fn swap(key: Bytes, value: Bytes, known: u64) -> TxnRequest {
    let is_known = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(known.cast_signed())),
        ..Compare::default()
    };
    let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let write = PutRequest { key, value, ..PutRequest::default() };
    let op = |op| vec![RequestOp { request: Some(op) }];
    TxnRequest {
        compare: vec![is_known],
        success: op(Op::RequestPut(write)),
        failure: op(Op::RequestRange(read)),
    }
}

/// Answers, of which nothing is taken that is not needed.
trait Read: Message + Default {
    type Is;

    fn is(self) -> Self::Is;

    fn read(answer: Bytes) -> Result<Self::Is, Trouble> {
        Self::decode(answer).map(Self::is).map_err(Trouble::broken)
    }
}

/// An answer's header, which all answers begin with.
#[derive(Clone, PartialEq, Message)]
struct Headed {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

impl Read for Headed {
    type Is = u64;

    fn is(self) -> u64 {
        self.header.map_or(0, |header| header.revision.unsigned_abs())
    }
}

/// How many keys a range holds.
#[derive(Clone, PartialEq, Message)]
struct Counted {
    #[prost(int64, tag = "4")]
    count: i64,
}

impl Read for Counted {
    type Is = u64;

    fn is(self) -> u64 {
        self.count.unsigned_abs()
    }
}

/// What came of [`swap`].
#[derive(Clone, PartialEq, Message)]
struct SwapAnswer {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<metastore_proto::etcdserverpb::ResponseOp>,
}

impl Read for SwapAnswer {
    type Is = Swapped;

    fn is(self) -> Swapped {
        use metastore_proto::etcdserverpb::response_op::Response;

        if self.succeeded {
            return Swapped::Yes(self.header.map_or(0, |header| header.revision.unsigned_abs()));
        }
        let found = self.responses.into_iter().find_map(|op| match op.response {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        Swapped::No(found.map_or(0, |kv| kv.mod_revision.unsigned_abs()))
    }
}
