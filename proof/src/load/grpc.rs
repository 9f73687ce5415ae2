//! A client of etcd's gRPC API.

use std::collections::HashMap;

use metastore_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    request_op::Request,
    response_op::Response,
};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

use super::{
    ANSWER_LIMIT, Client, Dice, Shared, Target,
    collect::pair,
    http,
    target::{Connections, ended},
    value::encode,
};
use crate::{
    Result,
    history::{Answer, Ask, End, Keys, Pair, Record},
};

/// What all its keys begin with.
pub const PREFIX: &str = "g/";

/// The keys below are deleted one by one, those from here to [`KEYS`] together.
const FIRST_OF_RANGE: u64 = 24;

const KEYS: u64 = 32;

/// Its key of a number.
pub fn key(number: u64) -> String {
    format!("{PREFIX}{number:02}")
}

pub struct GrpcClient {
    connections: Connections<Channel>,
    shared: Shared,
    dice: Dice,
    /// The revision at which a key was last seen.
    modified: HashMap<String, u64>,
}

/// An answer, no answer, or one that must not be.
type Call = std::result::Result<Answer, Wrong>;

enum Wrong {
    Status(Status),
    Answer(String),
}

impl From<Status> for Wrong {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl GrpcClient {
    pub fn new(targets: &[Target], shared: Shared, mut dice: Dice) -> Result<Self> {
        let mut connections = Connections::new(targets, Target::channel)?;
        connections.change(&mut dice);
        Ok(Self { connections, shared, dice, modified: HashMap::new() })
    }

    fn choose(&mut self) -> Ask {
        let key = key(self.dice.below(KEYS));
        match self.dice.below(20) {
            0..=3 => Ask::Range { keys: Keys::one(key), serializable: false },
            4..=5 => Ask::Range { keys: Keys::below(PREFIX), serializable: false },
            6 => Ask::Range { keys: Keys::below(&http::prefix(&self.shared)), serializable: false },
            7..=8 => Ask::Range { keys: Keys::below(PREFIX), serializable: true },
            9..=13 => Ask::Put { key, value: self.shared.values.next() },
            14..=17 => {
                let absent = self.dice.percent(20);
                let seen = self.modified.get(&key).copied().filter(|_| !absent);
                let value = self.shared.values.next();
                Ask::CompareAndPut { key, expected: seen.unwrap_or(0), value }
            }
            18 => {
                let number = self.dice.below(FIRST_OF_RANGE);
                Ask::DeleteRange(Keys::one(self::key(number)))
            }
            _ => {
                let (first, end) = (self::key(FIRST_OF_RANGE), self::key(KEYS));
                Ask::DeleteRange(Keys { key: first, end })
            }
        }
    }

    fn remember(&mut self, answer: &Answer) {
        if let Answer::Read { pairs, .. } = answer {
            for pair in pairs.iter().filter(|pair| pair.key.starts_with(PREFIX)) {
                self.modified.insert(pair.key.clone(), pair.modified);
            }
        }
    }
}

impl Client for GrpcClient {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    async fn ask(&mut self) -> Record {
        let ask = self.choose();
        let (member, channel) = self.connections.present();
        let client = KvClient::new(channel);
        let called = self.shared.clock.now();
        let call = timeout(ANSWER_LIMIT, call(client, &ask)).await;
        let ended = self.shared.clock.now();
        let end = match call {
            Err(_) => End::Unknown,
            Ok(Ok(answer)) => {
                self.remember(&answer);
                End::Ok(answer)
            }
            Ok(Err(wrong)) => wrong.end().unwrap_or_else(|why| {
                self.shared.figures.violation(format!("member {member}: {why}: {ask:?}"));
                End::Unknown
            }),
        };
        Record { member, ask, called, ended, end }
    }

    fn change_connection(&mut self) {
        self.connections.change(&mut self.dice);
    }
}

impl Wrong {
    fn end(self) -> std::result::Result<End, String> {
        match self {
            Self::Status(status) => ended(&status),
            Self::Answer(why) => Err(why),
        }
    }
}

fn revision(header: Option<&ResponseHeader>) -> std::result::Result<u64, Wrong> {
    let revision = header.and_then(|header| u64::try_from(header.revision).ok());
    revision.ok_or_else(|| Wrong::Answer("an answer without a revision".into()))
}

fn pairs<'a>(
    kvs: impl IntoIterator<Item = &'a metastore_proto::mvccpb::KeyValue>,
) -> std::result::Result<Vec<Pair>, Wrong> {
    kvs.into_iter().map(|kv| pair(kv).map_err(Wrong::Answer)).collect()
}

/// A range as it goes over the wire.
pub fn range(keys: &Keys) -> RangeRequest {
    RangeRequest {
        key: keys.key.clone().into(),
        range_end: keys.end.clone().into(),
        ..RangeRequest::default()
    }
}

async fn call(mut client: KvClient<Channel>, ask: &Ask) -> Call {
    match ask {
        Ask::Put { key, value } => {
            let put = PutRequest { prev_kv: true, ..put(key, *value) };
            let answer = client.put(put).await?.into_inner();
            let previous = pairs(&answer.prev_kv)?;
            Ok(Answer::Wrote { revision: revision(answer.header.as_ref())?, previous })
        }
        Ask::Range { keys, serializable } => {
            let request = RangeRequest { serializable: *serializable, ..range(keys) };
            let answer = client.range(request).await?.into_inner();
            let revision = revision(answer.header.as_ref())?;
            Ok(Answer::Read { revision, pairs: pairs(&answer.kvs)? })
        }
        Ask::CompareAndPut { key, expected, value } => {
            let answer = client.txn(compare_and_put(key, *expected, *value)).await?.into_inner();
            let revision = revision(answer.header.as_ref())?;
            if answer.succeeded {
                return Ok(Answer::Wrote { revision, previous: Vec::new() });
            }
            match answer.responses.into_iter().next().and_then(|first| first.response) {
                Some(Response::ResponseRange(range)) => {
                    Ok(Answer::Read { revision, pairs: pairs(&range.kvs)? })
                }
                other => Err(Wrong::Answer(format!("a transaction answered {other:?}"))),
            }
        }
        Ask::DeleteRange(keys) => {
            let RangeRequest { key, range_end, .. } = range(keys);
            let request = DeleteRangeRequest { key, range_end, prev_kv: true };
            let answer = client.delete_range(request).await?.into_inner();
            let revision = revision(answer.header.as_ref())?;
            let previous = pairs(&answer.prev_kvs)?;
            if u64::try_from(answer.deleted) != Ok(previous.len() as u64) {
                let count = answer.deleted;
                return Err(Wrong::Answer(format!("deleted {count}, which were {previous:?}")));
            }
            Ok(match answer.deleted {
                0 => Answer::Read { revision, pairs: previous },
                _ => Answer::Wrote { revision, previous },
            })
        }
        other => Err(Wrong::Answer(format!("not a gRPC request: {other:?}"))),
    }
}

fn put(key: &str, value: u64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: encode(value), ..PutRequest::default() }
}

fn compare_and_put(key: &str, expected: u64, value: u64) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(expected.cast_signed())),
        ..Compare::default()
    };
    let operation = |request| vec![RequestOp { request: Some(request) }];
    TxnRequest {
        compare: vec![compare],
        success: operation(Request::RequestPut(put(key, value))),
        failure: operation(Request::RequestRange(range(&Keys::one(key)))),
    }
}
