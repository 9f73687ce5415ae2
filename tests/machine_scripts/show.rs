//! What a script is answered.

use std::{error::Error, fmt::Write as _, ops::Bound};

use metastore::{
    machine::{AppliedEntry, ChangesPage, View},
    proto::{
        Alarms, Change, KeyRecord, LeaseRecord, Member, Members, Outcome, Tombstone,
        etcdserverpb::{RangeResponse, TxnResponse, response_op::Response},
        mvccpb::KeyValue,
        outcome,
    },
    storage::{Family, Pair, Reader, keys, memory::MemoryEngine},
};
use prost::Message;
use raft::eraftpb::ConfChangeType;

use super::Answer;

pub fn write_entry(out: &mut String, entry: &AppliedEntry) -> std::fmt::Result {
    write!(out, "{}:", entry.position.index)?;
    if entry.outcomes.is_empty() {
        write!(out, " nothing")?;
    }
    for (place, (_, outcome)) in entry.outcomes.iter().enumerate() {
        write!(out, "{} {}", if place == 0 { "" } else { ";" }, answer(outcome))?;
    }
    if let Some((change, state)) = &entry.conf_change {
        for single in change.get_changes() {
            let verb = match single.get_change_type() {
                ConfChangeType::AddNode => "add voter",
                ConfChangeType::AddLearnerNode => "add learner",
                ConfChangeType::RemoveNode => "remove",
            };
            write!(out, "; raft: {verb} {}", single.get_node_id())?;
        }
        write!(out, ", voters {:?} learners {:?}", state.get_voters(), state.get_learners())?;
    }
    writeln!(out)
}

fn answer(outcome: &Outcome) -> String {
    use outcome::Result as Is;
    match outcome.result.as_ref() {
        Some(Is::Revision(revision)) => format!("revision {revision}"),
        Some(Is::KeyNotFound(_)) => "key not found".into(),
        Some(Is::PreconditionFailed(revision)) => format!("precondition failed at {revision}"),
        Some(Is::Member(member)) => show_member(member),
        Some(Is::MemberNotFound(id)) => format!("no member {id}"),
        Some(Is::Conflict(why)) => format!("conflict: {why}"),
        Some(Is::Put(put)) => {
            let before = put.prev_kv.as_ref().map_or("nothing".to_owned(), key_value);
            format!("put at {}, was {before}", revision(&put.header))
        }
        Some(Is::DeleteRange(deleted)) => {
            let at = revision(&deleted.header);
            format!("deleted {} at {at}{}", deleted.deleted, key_values(&deleted.prev_kvs))
        }
        Some(Is::Txn(response)) => txn(response),
        Some(Is::Refused(_)) => format!("refused: {}", refused(outcome)),
        Some(Is::Lease(record)) => lease(record),
        Some(Is::Alarms(raised)) => alarms(raised),
        Some(Is::Done(_)) => format!("done at {}", outcome.store_revision),
        None => "no answer".into(),
    }
}

fn refused(outcome: &Outcome) -> &'static str {
    use metastore::proto::Refused;

    let Some(outcome::Result::Refused(refused)) = outcome.result else { return "not at all" };
    Refused::try_from(refused).map_or("unknown", |refused| refused.as_str_name())
}

fn revision(header: &Option<metastore::proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(-1, |header| header.revision)
}

fn key_value(kv: &KeyValue) -> String {
    let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
    let KeyValue { create_revision, mod_revision, version, .. } = kv;
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
    format!("{key}=\"{value}\" ({create_revision}, {mod_revision}, {version}{lease})")
}

fn key_values(kvs: &[KeyValue]) -> String {
    kvs.iter().fold(String::new(), |text, kv| text + ", " + &key_value(kv))
}

/// Keys with their creation, modification and version.
pub fn range(response: &RangeResponse) -> String {
    let more = if response.more { ", more" } else { "" };
    let (count, at) = (response.count, revision(&response.header));
    format!("{count} at {at}{}{more}", key_values(&response.kvs))
}

fn txn(response: &TxnResponse) -> String {
    let branch = if response.succeeded { "then" } else { "else" };
    let mut text = format!("{branch} at {}", revision(&response.header));
    for op in &response.responses {
        text += match &op.response {
            Some(Response::ResponsePut(put)) => format!("; put at {}", revision(&put.header)),
            Some(Response::ResponseDeleteRange(deleted)) => {
                format!("; deleted {} at {}", deleted.deleted, revision(&deleted.header))
            }
            Some(Response::ResponseRange(found)) => format!("; {}", range(found)),
            Some(Response::ResponseTxn(inner)) => format!("; ({})", txn(inner)),
            None => "; nothing".to_owned(),
        }
        .as_str();
    }
    text
}

pub fn changes(page: &ChangesPage) -> String {
    let mut text = String::new();
    for changes in &page.revisions {
        for change in &changes.changes {
            let value = change.record.as_ref().map(|record| record.value.escape_ascii());
            let value = value.map_or("deleted".to_owned(), |value| format!("\"{value}\""));
            text += &format!("{}: {} {value}\n", changes.revision, change.key.escape_ascii());
        }
    }
    let ChangesPage { next, revision, compacted, .. } = page;
    text + &format!("next {next}, revision {revision}, compacted {compacted}\n")
}

fn lease(record: &LeaseRecord) -> String {
    let LeaseRecord { id, ttl_s, remaining_s, renewal } = record;
    format!("lease {id}: {remaining_s} of {ttl_s} s, renewal {renewal}")
}

pub fn leases(view: &View<MemoryEngine>) -> Answer {
    let mut out = String::new();
    for record in view.leases()? {
        let keys: Vec<_> = view.lease_keys(record.id)?;
        let keys = keys.iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>();
        writeln!(out, "{}, keys {keys:?}", lease(&record))?;
    }
    Ok(if out.is_empty() { "none".into() } else { out })
}

pub fn alarms(raised: &Alarms) -> String {
    let each = raised.alarms.iter();
    let each = each.map(|a| format!("{} of {}", a.alarm().as_str_name(), a.member_id));
    format!("alarms {:?}", each.collect::<Vec<_>>())
}

fn show_member(member: &Member) -> String {
    let mut text = format!("member {} at {}", member.id, member.peer_url);
    if member.learner {
        text += ", learner";
    }
    if member.promote_when_caught_up {
        text += " to be promoted";
    }
    if member.incarnation != 0 {
        text += &format!(", incarnation {}", member.incarnation);
    }
    if !member.client_url.is_empty() {
        text += &format!(", clients {}", member.client_url);
    }
    text
}

pub fn members(members: &Members) -> Answer {
    let mut out =
        format!("cluster {:016x}, removed {:?}\n", members.cluster_id, members.removed_ids);
    for member in &members.members {
        writeln!(out, "{}", show_member(member))?;
    }
    Ok(out)
}

pub fn record(record: &KeyRecord) -> String {
    let KeyRecord { create_revision, mod_revision, version, changes, .. } = record;
    let value = record.value.escape_ascii();
    let lease = if record.lease == 0 { String::new() } else { format!(" lease {}", record.lease) };
    format!(
        "\"{value}\" created {create_revision} modified {mod_revision} version {version} changes {changes}{lease}"
    )
}

pub fn dump(engine: &MemoryEngine, compacted: u64) -> Answer {
    let mut out = String::new();
    for (key, value) in pairs(engine, Family::Current)? {
        let record = KeyRecord::decode(value)?;
        writeln!(out, "current \"{}\" {}", key.escape_ascii(), self::record(&record))?;
    }
    for (key, value) in pairs(engine, Family::Deleted)? {
        let Tombstone { revision, changes, .. } = Tombstone::decode(value)?;
        writeln!(out, "deleted \"{}\" at {revision} changes {changes}", key.escape_ascii())?;
    }
    for (place, value) in pairs(engine, Family::Changes)? {
        let (revision, sub) = keys::change_revision(&place)?;
        if revision < compacted {
            continue;
        }
        let change = Change::decode(value)?;
        let [before, after] = [&change.previous, &change.record].map(|record| {
            record
                .as_ref()
                .map_or_else(|| "none".into(), |r| format!("\"{}\"", r.value.escape_ascii()))
        });
        let (key, back) = (change.key.escape_ascii(), change.previous_revision);
        writeln!(out, "change {revision}.{sub} \"{key}\" {before} -> {after}, back to {back}")?;
    }
    for (place, _) in pairs(engine, Family::History)? {
        let (key, revision, sub) = keys::history_parts(&place)?;
        writeln!(out, "history \"{}\" {revision}.{sub}", key.escape_ascii())?;
    }
    Ok(if out.is_empty() { "empty".into() } else { out })
}

fn pairs(engine: &MemoryEngine, family: Family) -> Result<Vec<Pair>, Box<dyn Error>> {
    let everything = (Bound::Unbounded, Bound::Unbounded);
    Ok(engine.scan(family, everything).collect::<Result<_, _>>()?)
}
