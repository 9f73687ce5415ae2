//! Reading from one member what the run came to.

use std::time::Duration;

use metastore_proto::{
    etcdserverpb::{
        HashKvRequest, RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::{self, KeyValue, event::EventType},
};
use tokio::time::timeout;
use tokio_stream::{StreamExt, once, pending};

use super::{Target, grpc::range, value::decode};
use crate::{
    Failure, Result,
    history::{Change, Event, Keys, Pair},
    report::During,
};

/// How long the next piece of an answer may take when nothing is broken.
const PIECE_LIMIT: Duration = Duration::from_secs(30);

/// Answers are as large as the store.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// A pair as it came over the wire.
pub fn pair(kv: &KeyValue) -> std::result::Result<Pair, String> {
    let number = |value: i64| u64::try_from(value).map_err(|_| format!("{value} in {kv:?}"));
    let value = decode(&kv.value).ok_or_else(|| format!("nobody wrote this value: {kv:?}"))?;
    Ok(Pair {
        key: text(&kv.key)?,
        value,
        created: number(kv.create_revision)?,
        modified: number(kv.mod_revision)?,
        version: number(kv.version)?,
        lease: kv.lease,
    })
}

fn text(key: &[u8]) -> std::result::Result<String, String> {
    String::from_utf8(key.to_vec()).map_err(|_| format!("nobody wrote this key: {key:?}"))
}

/// An event as it came over the wire, and its revision.
pub fn event(event: &mvccpb::Event) -> std::result::Result<(u64, Event), String> {
    let kv = event.kv.as_ref().ok_or("an event without a key")?;
    let revision = u64::try_from(kv.mod_revision).map_err(|_| format!("{event:?}"))?;
    let put = match event.r#type() {
        EventType::Put => Some(pair(kv)?),
        EventType::Delete => None,
    };
    Ok((revision, Event { key: text(&kv.key)?, put }))
}

/// Every change from the first to this revision, as a watch of this member
/// tells of them.
///
/// # Errors
/// When the watch breaks, stalls, or tells of what nobody wrote.
pub async fn changes(target: &Target, revision: u64) -> Result<Vec<Change>> {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut client =
        WatchClient::new(target.channel()?).max_decoding_message_size(MAX_ANSWER_BYTES);
    // The stream of requests stays open.
    let requests = once(create).chain(pending());
    let mut answers = client.watch(requests).await.during("watch from the beginning")?.into_inner();
    let mut changes: Vec<Change> = Vec::new();
    while changes.last().map_or(1, |change| change.revision) < revision {
        let answer = timeout(PIECE_LIMIT, answers.message()).await.during(format_args!(
            "the watch of member {} from the beginning, at {:?}",
            target.id,
            changes.last().map(|change| change.revision)
        ))?;
        let answer = answer.during("a watch from the beginning")?;
        let answer = answer.ok_or_else(|| Failure::failed("a watch ended by itself"))?;
        if answer.canceled {
            return Err(Failure::failed(format!("a watch was cancelled: {answer:?}")));
        }
        for told in &answer.events {
            let (revision, event) = event(told).map_err(Failure::Failed)?;
            match changes.last_mut().filter(|change| change.revision == revision) {
                Some(change) => change.events.push(event),
                None => changes.push(Change { revision, events: vec![event] }),
            }
        }
    }
    Ok(changes)
}

/// All pairs as this member has them, and its revision.
///
/// # Errors
/// When it does not answer.
pub async fn all_pairs(target: &Target) -> Result<(u64, Vec<Pair>)> {
    let everything = Keys { key: "\0".into(), end: "\0".into() };
    let request = RangeRequest { serializable: true, ..range(&everything) };
    let mut client = KvClient::new(target.channel()?).max_decoding_message_size(MAX_ANSWER_BYTES);
    let call = timeout(PIECE_LIMIT, client.range(request)).await.during("read all keys")?;
    let answer = call.during("read all keys")?.into_inner();
    let revision = answer.header.map_or(0, |header| header.revision.unsigned_abs());
    let pairs: std::result::Result<_, String> = answer.kvs.iter().map(pair).collect();
    Ok((revision, pairs.map_err(Failure::Failed)?))
}

/// HashKV of this member at a revision.
///
/// # Errors
/// When it does not answer.
pub async fn hash_at(target: &Target, revision: u64) -> Result<u32> {
    let request = HashKvRequest { revision: revision.cast_signed() };
    let mut client = MaintenanceClient::new(target.channel()?);
    let call = timeout(PIECE_LIMIT, client.hash_kv(request)).await.during("HashKV")?;
    Ok(call.during("HashKV")?.into_inner().hash)
}
