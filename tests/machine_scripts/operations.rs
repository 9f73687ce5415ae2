//! From the words of a script to operations.

use std::error::Error;

use bytes::Bytes;
use metastore::proto::{
    AddMember, BindIncarnation, CheckpointLeases, Compact, Condition, Delete, ExpireLeases,
    GrantLease, LeaseRenewal, PromoteMember, Put, RemoveMember, RenewLeases, RevokeLease, SetAlarm,
    SetClientUrl, SetPeerUrl,
    command::Op,
    etcdserverpb::{
        AlarmType, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};

use super::Step;

type Parsed<T> = Result<T, Box<dyn Error>>;

/// The operation of a step that is a command of the log.
pub fn operation(step: &Step) -> Parsed<Option<Op>> {
    Ok(Some(match step {
        Step::Put { key, value, lease, grant, if_match, if_none_match } => Op::Put(Put {
            key: key.clone().into(),
            value: value.clone().into(),
            condition: condition(if_match.as_deref(), if_none_match.as_deref()),
            lease: lease.unwrap_or_default(),
            grant_ttl_s: grant.unwrap_or_default(),
        }),
        Step::EtcdPut { key, value, lease, ignore_value, ignore_lease } => {
            Op::PutRequest(PutRequest {
                key: key.clone().into(),
                value: value.clone().unwrap_or_default().into(),
                lease: lease.unwrap_or_default(),
                prev_kv: true,
                ignore_value: *ignore_value,
                ignore_lease: *ignore_lease,
            })
        }
        Step::DeleteRange { key, end } => Op::DeleteRange(DeleteRangeRequest {
            key: key.clone().into(),
            range_end: end.clone().unwrap_or_default().into(),
            prev_kv: true,
        }),
        Step::Txn(parts) => Op::Txn(txn(parts)?),
        Step::Compact(revision) => Op::Compact(Compact { revision: *revision }),
        Step::Grant(id, ttl_s) => Op::GrantLease(GrantLease { id: *id, ttl_s: *ttl_s }),
        Step::Revoke(id) => Op::RevokeLease(RevokeLease { id: *id }),
        Step::Renew(ids) => Op::RenewLeases(RenewLeases { ids: ids.clone() }),
        Step::Expire(term, id, renewal) => {
            let leases = vec![LeaseRenewal { id: *id, renewal: *renewal, remaining_s: 0 }];
            Op::ExpireLeases(ExpireLeases { term: *term, leases })
        }
        Step::Checkpoint(term, id, renewal, remaining_s) => {
            let leases =
                vec![LeaseRenewal { id: *id, renewal: *renewal, remaining_s: *remaining_s }];
            Op::CheckpointLeases(CheckpointLeases { term: *term, leases })
        }
        Step::Raise(member, kind) => Op::SetAlarm(alarm(*member, kind, true)?),
        Step::Disarm(member, kind) => Op::SetAlarm(alarm(*member, kind, false)?),
        Step::Delete { key, if_match, if_none_match } => Op::Delete(Delete {
            key: key.clone().into(),
            condition: condition(if_match.as_deref(), if_none_match.as_deref()),
        }),
        Step::Add { id, url, promote } => Op::AddMember(AddMember {
            id: *id,
            peer_url: url.clone(),
            promote_when_caught_up: *promote,
        }),
        Step::Promote(id) => Op::PromoteMember(PromoteMember { id: *id }),
        Step::Remove(id) => Op::RemoveMember(RemoveMember { id: *id }),
        Step::Bind(id, incarnation) => {
            Op::BindIncarnation(BindIncarnation { id: *id, incarnation: *incarnation })
        }
        Step::ClientUrl(id, url) => {
            Op::SetClientUrl(SetClientUrl { id: *id, client_url: url.clone() })
        }
        Step::PeerUrl(id, url) => Op::SetPeerUrl(SetPeerUrl { id: *id, peer_url: url.clone() }),
        _ => return Ok(None),
    }))
}

/// The request of a range step.
pub fn range(step: &Step) -> Parsed<RangeRequest> {
    let Step::Range {
        key,
        end,
        revision,
        limit,
        order,
        target,
        keys_only,
        count_only,
        min_mod,
        max_mod,
        min_create,
        max_create,
        max_bytes: _,
    } = step
    else {
        return Err("not a range".into());
    };
    let order = order.as_deref().unwrap_or("none").to_uppercase();
    let order = SortOrder::from_str_name(&order).ok_or("no such order")?;
    let target = target.as_deref().unwrap_or("key").to_uppercase();
    let target = SortTarget::from_str_name(&target).ok_or("no such target")?;
    Ok(RangeRequest {
        key: key.clone().into(),
        range_end: end.clone().unwrap_or_default().into(),
        limit: *limit,
        revision: *revision,
        sort_order: order.into(),
        sort_target: target.into(),
        serializable: false,
        keys_only: *keys_only,
        count_only: *count_only,
        min_mod_revision: *min_mod,
        max_mod_revision: *max_mod,
        min_create_revision: *min_create,
        max_create_revision: *max_create,
    })
}

fn txn(parts: &[String]) -> Parsed<TxnRequest> {
    let mut txn = TxnRequest::default();
    for part in parts {
        let words: Vec<&str> = part.split(' ').collect();
        match words[..] {
            ["if", ref words @ ..] => txn.compare.push(compare(words)?),
            ["then", ref words @ ..] => txn.success.push(request(words)?),
            ["else", ref words @ ..] => txn.failure.push(request(words)?),
            _ => return Err(format!("neither if, then nor else: {part}").into()),
        }
    }
    Ok(txn)
}

fn compare(words: &[&str]) -> Parsed<Compare> {
    let [target, key, relation, value, ref end @ ..] = *words else {
        return Err("an incomplete comparison".into());
    };
    let (target, union) = match target {
        "version" => (CompareTarget::Version, TargetUnion::Version(value.parse()?)),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(value.parse()?)),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(value.parse()?)),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(value.parse()?)),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
        _ => return Err(format!("no such target: {target}").into()),
    };
    let result = match relation {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        "<" => CompareResult::Less,
        ">" => CompareResult::Greater,
        _ => return Err(format!("no such relation: {relation}").into()),
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(key),
        range_end: end.first().copied().map(bytes).unwrap_or_default(),
        target_union: Some(union),
    })
}

fn request(words: &[&str]) -> Parsed<RequestOp> {
    let at = |place: usize| words.get(place).copied();
    let word = |place: usize| at(place).map(bytes).unwrap_or_default();
    let number = |place: usize| at(place).map_or(Ok(0), str::parse::<i64>);
    let request = match at(0) {
        Some("put") => Request::RequestPut(PutRequest {
            key: word(1),
            value: word(2),
            lease: number(3)?,
            ..PutRequest::default()
        }),
        Some("keep") => Request::RequestPut(PutRequest {
            key: word(1),
            ignore_value: true,
            ..PutRequest::default()
        }),
        Some("range") => Request::RequestRange(RangeRequest {
            key: word(1),
            range_end: word(2),
            revision: number(3)?,
            ..RangeRequest::default()
        }),
        Some("delete") => Request::RequestDeleteRange(DeleteRangeRequest {
            key: word(1),
            range_end: word(2),
            prev_kv: false,
        }),
        Some("nothing") => return Ok(RequestOp { request: None }),
        other => return Err(format!("no such operation: {other:?}").into()),
    };
    Ok(RequestOp { request: Some(request) })
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn alarm(member: u64, kind: &str, active: bool) -> Parsed<SetAlarm> {
    let alarm = AlarmType::from_str_name(&kind.to_uppercase()).ok_or("no such alarm")?;
    Ok(SetAlarm { member, alarm: alarm.into(), active })
}

fn condition(if_match: Option<&str>, if_none_match: Option<&str>) -> Option<Condition> {
    if if_match.is_none() && if_none_match.is_none() {
        return None;
    }
    let revisions = |list: Option<&str>| -> Vec<u64> {
        let tags = list.unwrap_or_default().split(',');
        tags.filter_map(|tag| tag.trim().parse().ok()).collect()
    };
    Some(Condition {
        mod_revisions: revisions(if_match),
        exists: if_match == Some("*"),
        absent: if_none_match == Some("*"),
        not_mod_revisions: revisions(if_none_match),
    })
}
