//! One value of everything that is stored or exchanged, and its bytes.

use std::{fmt::Debug, path::Path, sync::Arc, time::Duration};

use axum::{Router, body, extract::Request, routing::post};
use bytes::{Bytes, BytesMut};
use metastore::{
    machine::{self, command},
    proto::{
        AddMember, Alarms, AppliedState, BindIncarnation, Change, CheckState, CheckpointLeases,
        Command, Compact, Condition, Delete, ExpireLeases, ForwardAnswer, ForwardBatch,
        ForwardRequest, ForwardResponse, Founder, FoundingHello, FoundingRecord, GrantLease,
        Identity, JoinRequest, JoinResponse, KeyRecord, LeaseRecord, LeaseRenewal, LeaseTime,
        LogPosition, Member, Members, Outcome, PromoteMember, Put, Refused, RemoveMember,
        RenewLeases, RequestId, RevokeLease, SetAlarm, SetClientUrl, SetPeerUrl, SnapshotFile,
        SnapshotHeader, StateReport, Tombstone, Unit,
        command::Op,
        etcdserverpb::{
            AlarmMember, AlarmType, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
            PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp,
            TxnRequest, TxnResponse,
            compare::{CompareResult, CompareTarget, TargetUnion},
            request_op, response_op,
        },
        forward_request, forward_response, join_response,
        mvccpb::KeyValue,
        outcome,
    },
    raftlog::{Recovered, Watermark},
    storage::keys,
    transport::{PeerClient, frame, snapshot},
};
use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
};

type Reads = dyn Fn(&[u8]) -> Result<(), String>;

/// Something that is stored or exchanged.
pub struct Sample {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Whether these bytes are still understood as what they meant.
    pub reads: Box<Reads>,
}

fn sample(
    name: impl Into<String>,
    bytes: impl Into<Vec<u8>>,
    reads: impl Fn(&[u8]) -> Result<(), String> + 'static,
) -> Sample {
    Sample { name: name.into(), bytes: bytes.into(), reads: Box::new(reads) }
}

fn same<T: PartialEq + Debug>(read: &T, meant: &T) -> Result<(), String> {
    if read == meant { Ok(()) } else { Err(format!("read as {read:?}, meant {meant:?}")) }
}

/// A message of the project.
fn message<M: prost::Message + PartialEq + Debug + Default + 'static>(
    name: &str,
    meant: M,
) -> Sample {
    sample(name, meant.encode_to_vec(), move |bytes| {
        same(&M::decode(bytes).map_err(|error| error.to_string())?, &meant)
    })
}

/// A message of raft's that is stored as such.
fn of_raft<M: protobuf::Message + PartialEq>(name: &str, meant: M) -> Sample {
    sample(name, meant.write_to_bytes().expect("encodable"), move |bytes| {
        same(&M::parse_from_bytes(bytes).map_err(|error| error.to_string())?, &meant)
    })
}

/// A key of a database, which is only ever compared.
fn key(name: &str, bytes: impl Into<Vec<u8>>) -> Sample {
    let bytes = bytes.into();
    let meant = bytes.clone();
    sample(format!("key {name}"), bytes, move |bytes| same(&bytes, &&meant[..]))
}

pub async fn samples() -> Vec<Sample> {
    let mut all: Vec<Sample> = commands().into_iter().map(|(name, op)| payload(name, op)).collect();
    all.extend(records());
    all.extend(database_keys());
    all.extend(calls());
    all.extend(outcomes());
    all.extend(raft_messages());
    all.extend(watermark());
    all.push(transfer().await);
    all
}

fn id() -> RequestId {
    RequestId { member: 3, nonce: 0x0123_4567_89ab_cdef, sequence: 300 }
}

/// A command as the log holds it.
fn payload(name: &str, op: Op) -> Sample {
    let meant = vec![Command { id: Some(id()), op: Some(op) }];
    sample(format!("command {name}"), command::encode_payload(meant.clone()), move |bytes| {
        same(&command::decode_payload(bytes).map_err(|fatal| fatal.to_string())?, &meant)
    })
}

fn bytes(text: &'static [u8]) -> Bytes {
    Bytes::from_static(text)
}

fn leases() -> Vec<LeaseRenewal> {
    vec![
        LeaseRenewal { id: 42, renewal: 7, remaining_s: 55 },
        LeaseRenewal { id: -1, renewal: u64::MAX, remaining_s: 0 },
    ]
}

fn commands() -> Vec<(&'static str, Op)> {
    let url = || "http://127.0.0.1:12379".to_owned();
    let condition = Condition {
        mod_revisions: vec![2, 300],
        exists: true,
        absent: true,
        not_mod_revisions: vec![5],
    };
    let put = Put {
        key: bytes(b"\x00\xff key"),
        value: bytes(b"value"),
        condition: Some(condition.clone()),
        lease: 42,
        grant_ttl_s: 60,
    };
    let delete = Delete { key: bytes(b"k"), condition: Some(condition) };
    vec![
        ("put", Op::Put(put)),
        ("delete", Op::Delete(delete)),
        ("bind_incarnation", Op::BindIncarnation(BindIncarnation { id: 4, incarnation: 99 })),
        ("set_client_url", Op::SetClientUrl(SetClientUrl { id: 4, client_url: url() })),
        ("set_peer_url", Op::SetPeerUrl(SetPeerUrl { id: 4, peer_url: url() })),
        (
            "add_member",
            Op::AddMember(AddMember { id: 4, peer_url: url(), promote_when_caught_up: true }),
        ),
        ("promote_member", Op::PromoteMember(PromoteMember { id: 4 })),
        ("remove_member", Op::RemoveMember(RemoveMember { id: 4 })),
        ("put_request", Op::PutRequest(put_request())),
        ("delete_range", Op::DeleteRange(delete_range())),
        ("txn", Op::Txn(txn())),
        ("compact", Op::Compact(Compact { revision: 77 })),
        ("grant_lease", Op::GrantLease(GrantLease { id: 42, ttl_s: 60 })),
        ("revoke_lease", Op::RevokeLease(RevokeLease { id: 42 })),
        ("expire_leases", Op::ExpireLeases(ExpireLeases { term: 9, leases: leases() })),
        ("renew_leases", Op::RenewLeases(RenewLeases { ids: vec![42, -1] })),
        ("checkpoint_leases", Op::CheckpointLeases(CheckpointLeases { term: 9, leases: leases() })),
        (
            "set_alarm",
            Op::SetAlarm(SetAlarm { member: 2, alarm: AlarmType::Nospace.into(), active: true }),
        ),
        ("check_state", Op::CheckState(CheckState {})),
    ]
}

fn put_request() -> PutRequest {
    PutRequest {
        key: bytes(b"k"),
        value: bytes(b"v"),
        lease: 42,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
    }
}

fn delete_range() -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(b"k"), range_end: bytes(b"l"), prev_kv: true }
}

fn txn() -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Mod.into(),
        key: bytes(b"k"),
        range_end: bytes(b"l"),
        target_union: Some(TargetUnion::ModRevision(5)),
    };
    let range = RangeRequest { key: bytes(b"k"), limit: 3, revision: 4, ..RangeRequest::default() };
    let op = |request| RequestOp { request: Some(request) };
    let inner = TxnRequest {
        failure: vec![op(request_op::Request::RequestDeleteRange(delete_range()))],
        ..TxnRequest::default()
    };
    TxnRequest {
        compare: vec![compare],
        success: vec![
            op(request_op::Request::RequestPut(put_request())),
            op(request_op::Request::RequestRange(range)),
        ],
        failure: vec![op(request_op::Request::RequestTxn(inner))],
    }
}

fn record() -> KeyRecord {
    KeyRecord {
        create_revision: 3,
        mod_revision: 400,
        version: 5,
        lease: 42,
        value: bytes(b"value"),
        sub: 6,
        changes: 7,
    }
}

fn members() -> Members {
    let first = Member {
        id: 1,
        peer_url: "http://127.0.0.1:12379".to_owned(),
        client_url: "http://127.0.0.1:12380".to_owned(),
        incarnation: 99,
        ..Member::default()
    };
    let second = Member {
        id: 2,
        peer_url: "http://127.0.0.1:22379".to_owned(),
        learner: true,
        promote_when_caught_up: true,
        ..Member::default()
    };
    Members { cluster_id: 7, members: vec![first, second], removed_ids: vec![3, 400] }
}

fn founding() -> FoundingRecord {
    let founder = |id| Founder {
        id,
        peer_url: format!("http://127.0.0.1:{id}2379"),
        incarnation: id * 1_000,
    };
    FoundingRecord { founders: vec![founder(1), founder(2)] }
}

/// What the databases hold.
fn records() -> Vec<Sample> {
    let change = Change {
        key: bytes(b"k"),
        record: Some(record()),
        previous: Some(KeyRecord { version: 4, ..record() }),
        previous_revision: 399,
        previous_sub: 2,
    };
    let lease = LeaseRecord { id: 42, ttl_s: 60, remaining_s: 50, renewal: 7 };
    let alarm = AlarmMember { member_id: 2, alarm: AlarmType::Nospace.into() };
    let cluster_id = machine::cluster_id(&founding());
    vec![
        message("record KeyRecord", record()),
        message("record Change", change),
        message("record Tombstone", Tombstone { revision: 400, sub: 1, changes: 8 }),
        message("record LeaseRecord", lease),
        message("record Alarms", Alarms { alarms: vec![alarm] }),
        message("record Members", members()),
        message(
            "record AppliedState",
            AppliedState { index: 500, term: 6, revision: 400, compacted: 300 },
        ),
        message("record Identity", identity()),
        message("record FoundingRecord", founding()),
        message("record LogPosition", LogPosition { index: 500, term: 6 }),
        sample("cluster id of the FoundingRecord", cluster_id.to_be_bytes(), move |bytes| {
            same(&bytes, &&cluster_id.to_be_bytes()[..])
        }),
    ]
}

fn identity() -> Identity {
    Identity { cluster_id: 7, member_id: 1, incarnation: 99 }
}

fn database_keys() -> Vec<Sample> {
    vec![
        key("entry", keys::entry(500)),
        key("change", keys::change(400, 6)),
        key("history", keys::history(b"a\x00b\xff", 400, 6)),
        key("lease", keys::lease(42)),
        key("negative lease", keys::lease(-1)),
        key("attached", keys::lease_key(42, b"k")),
        key("format", keys::FORMAT),
        key("identity", keys::IDENTITY),
        key("incarnation", keys::INCARNATION),
        key("founding", keys::FOUNDING),
        key("hard state", keys::HARD_STATE),
        key("snapshot", keys::SNAPSHOT),
        key("truncated", keys::TRUNCATED),
        key("live state", keys::LIVE_STATE),
        key("applied", keys::APPLIED),
        key("members", keys::MEMBERS),
        key("alarms", keys::ALARMS),
    ]
}

/// What members say to each other beside raft's messages.
fn calls() -> Vec<Sample> {
    let hello = FoundingHello {
        member_id: 1,
        incarnation: 99,
        prepared: Some(founding()),
        cluster_id: 7,
        members: Some(members()),
        applied_index: 500,
    };
    let joined = JoinResponse {
        refusal: join_response::Refusal::UnknownMember.into(),
        members: Some(members()),
    };
    let ask = |request| ForwardRequest { request: Some(request), timeout_ms: 5_000 };
    let put = Command { id: Some(id()), op: Some(Op::PutRequest(put_request())) };
    let report = StateReport {
        member: 2,
        position: Some(LogPosition { index: 500, term: 6 }),
        hash: bytes(&[7; 32]),
    };
    let batch = ForwardBatch {
        requests: vec![
            ask(forward_request::Request::Command(put.clone())),
            ask(forward_request::Request::KeepAlive(42)),
        ],
    };
    vec![
        message("call FoundingHello", hello),
        message("call JoinRequest", JoinRequest { member_id: 4, incarnation: 99 }),
        message("call JoinResponse", joined),
        message("call forward command", ask(forward_request::Request::Command(put))),
        message("call forward transfer", ask(forward_request::Request::TransferLeader(2))),
        message("call forward keep_alive", ask(forward_request::Request::KeepAlive(42))),
        message("call forward time_to_live", ask(forward_request::Request::TimeToLive(42))),
        message("call forward state_report", ask(forward_request::Request::StateReport(report))),
        message("call forward batch", batch),
    ]
}

/// What comes back of a forwarded request.
fn outcomes() -> Vec<Sample> {
    use forward_response::Result as Said;
    use outcome::Result as Is;
    let header = ResponseHeader { revision: 400, ..ResponseHeader::default() };
    let pair = KeyValue {
        key: bytes(b"k"),
        create_revision: 3,
        mod_revision: 400,
        version: 5,
        value: bytes(b"v"),
        lease: 42,
    };
    let range =
        RangeResponse { header: Some(header), kvs: vec![pair.clone()], more: true, count: 9 };
    let put = PutResponse { header: Some(header), prev_kv: Some(pair.clone()) };
    let delete = DeleteRangeResponse { header: Some(header), deleted: 2, prev_kvs: vec![pair] };
    let op = |response| ResponseOp { response: Some(response) };
    let txn = TxnResponse {
        header: Some(header),
        succeeded: true,
        responses: vec![op(response_op::Response::ResponseRange(range))],
    };
    let alarm = AlarmMember { member_id: 2, alarm: AlarmType::Nospace.into() };
    let lease = LeaseRecord { id: 42, ttl_s: 60, remaining_s: 50, renewal: 7 };
    let time = LeaseTime { exists: true, granted_ttl_s: 60, remaining_s: 50 };
    let done = |result| {
        let outcome = Outcome { result: Some(result), store_revision: 400, ..Outcome::default() };
        Said::Outcome(outcome)
    };
    let member = members().members.remove(0);
    let not_leader = ForwardResponse { result: Some(Said::NotLeader(2)) };
    let answer = ForwardAnswer { place: 1, response: Some(not_leader) };
    [
        ("revision", done(Is::Revision(400))),
        ("key_not_found", done(Is::KeyNotFound(Unit {}))),
        ("precondition_failed", done(Is::PreconditionFailed(399))),
        ("member", done(Is::Member(member))),
        ("member_not_found", done(Is::MemberNotFound(9))),
        ("conflict", done(Is::Conflict("why".to_owned()))),
        ("put", done(Is::Put(put))),
        ("delete_range", done(Is::DeleteRange(delete))),
        ("txn", done(Is::Txn(txn))),
        ("refused", done(Is::Refused(Refused::LeaseNotFound.into()))),
        ("lease", done(Is::Lease(lease))),
        ("alarms", done(Is::Alarms(Alarms { alarms: vec![alarm] }))),
        ("done", done(Is::Done(Unit {}))),
        ("not_leader", Said::NotLeader(2)),
        ("not_applied", Said::NotApplied("why".to_owned())),
        ("unknown", Said::Unknown("why".to_owned())),
        ("overloaded", Said::Overloaded("why".to_owned())),
        ("conflict of members", Said::Conflict("why".to_owned())),
        ("transferred", Said::Done(Unit {})),
        ("no such member", Said::MemberNotFound(9)),
        ("lease time", Said::Lease(time)),
    ]
    .into_iter()
    .map(|(name, result)| {
        message(&format!("answer {name}"), ForwardResponse { result: Some(result) })
    })
    .chain([message("answer of a batch", answer)])
    .collect()
}

fn entry(kind: EntryType) -> Entry {
    let add = AddMember { id: 4, peer_url: "http://d:1".to_owned(), promote_when_caught_up: true };
    let command = Command { id: Some(id()), op: Some(Op::AddMember(add)) };
    let mut entry = Entry::default();
    entry.set_entry_type(kind);
    (entry.index, entry.term) = (500, 6);
    if kind == EntryType::EntryConfChangeV2 {
        let change: ConfChangeV2 = command::conf_change(&command).expect("one of the members");
        entry.data = change.write_to_bytes().expect("encodable").into();
        entry.context = command::encode_command(&command).into();
    } else {
        entry.data = command::encode_payload(vec![command]).into();
    }
    entry
}

fn from_one_to_two(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (1, 2, 6);
    (message.log_term, message.index, message.commit) = (5, 499, 498);
    message
}

fn snapshot_message() -> Message {
    let conf_state = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.set_conf_state(conf_state);
    (metadata.index, metadata.term) = (499, 5);
    let mut message = from_one_to_two(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    message
}

/// Raft's own messages, in frames, and what is stored of them.
fn raft_messages() -> Vec<Sample> {
    let mut append = from_one_to_two(MessageType::MsgAppend);
    append.mut_entries().push(entry(EntryType::EntryNormal));
    append.mut_entries().push(entry(EntryType::EntryConfChangeV2));
    let mut rejection = from_one_to_two(MessageType::MsgAppendResponse);
    rejection.reject = true;
    rejection.reject_hint = 450;
    let mut read = from_one_to_two(MessageType::MsgReadIndex);
    read.mut_entries().push(entry(EntryType::EntryNormal));
    let frames = [
        ("append", append),
        ("rejection", rejection),
        ("vote", from_one_to_two(MessageType::MsgRequestPreVote)),
        ("heartbeat", from_one_to_two(MessageType::MsgHeartbeat)),
        ("read", read),
    ];
    let mut all: Vec<Sample> =
        frames.into_iter().map(|(name, meant)| framed(name, meant)).collect();
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.vote, hard_state.commit) = (6, 2, 498);
    all.push(of_raft("stored hard state", hard_state));
    all.push(of_raft("stored entry", entry(EntryType::EntryNormal)));
    all.push(of_raft("stored change of members", entry(EntryType::EntryConfChangeV2)));
    all.push(sample("frame keep-alive", frame::KEEP_ALIVE, |bytes| {
        same(&bytes, &&frame::KEEP_ALIVE[..])
    }));
    all
}

fn framed(name: &str, meant: Message) -> Sample {
    let mut buffer = BytesMut::new();
    frame::encode(&meant, &mut buffer).expect("small");
    sample(format!("frame {name}"), buffer, move |bytes| {
        let (head, content) = bytes.split_first_chunk::<4>().ok_or("it has no length")?;
        same(&(u32::from_be_bytes(*head) as usize), &content.len())?;
        same(&frame::decode(content).map_err(|error| error.to_string())?, &meant)
    })
}

/// Both files of a watermark.
fn watermark() -> Vec<Sample> {
    let synced = Recovered {
        hard_state: {
            let mut hard_state = HardState::default();
            (hard_state.term, hard_state.vote) = (6, 2);
            hard_state
        },
        last: LogPosition { index: 500, term: 6 },
        ..Recovered::default()
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut mark = Watermark::open(dir.path().join("watermark"), &Recovered::default())
        .expect("a new watermark");
    mark.advance(&synced.hard_state, synced.last).expect("a disk that works");
    mark.synced(synced.last).expect("a disk that works");
    let of_file = |file: &'static str| {
        let bytes = std::fs::read(dir.path().join(file)).expect("it was just written");
        let synced = synced.clone();
        sample(format!("file {file}"), bytes, move |bytes| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            std::fs::write(dir.path().join(file), bytes).expect("a disk that works");
            let path = dir.path().join("watermark");
            Watermark::check(&path, &synced).map_err(|fatal| fatal.to_string())?;
            let mut behind = synced.clone();
            behind.last.index -= 1;
            match Watermark::check(&path, &behind) {
                Err(fatal) if fatal.to_string().contains("behind its own watermark") => Ok(()),
                other => Err(format!("a log that lost its end: {other:?}")),
            }
        })
    };
    vec![of_file("watermark"), of_file("watermark-log")]
}

/// A whole snapshot as a member sends it.
async fn transfer() -> Sample {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, content) in [("000007.sst", &b"table"[..]), ("CURRENT", b"MANIFEST-000005\n")] {
        std::fs::write(dir.path().join(name), content).expect("a disk that works");
    }
    let body = sent(dir.path()).await;
    sample("snapshot transfer", body, |bytes| {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or("it has no length")?;
        let (header, files) = rest
            .split_at_checked(u32::from_be_bytes(*head) as usize)
            .ok_or("it ends within its header")?;
        let header: SnapshotHeader =
            prost::Message::decode(header).map_err(|error| error.to_string())?;
        let file = |name: &str, size| SnapshotFile { name: name.to_owned(), size };
        same(&header.files, &vec![file("000007.sst", 5), file("CURRENT", 16)])?;
        let message = frame::decode(&header.message).map_err(|error| error.to_string())?;
        same(&message, &snapshot_message())?;
        same(&(&files[..5], files.len()), &(&b"table"[..], 5 + 32 + 16 + 32))
    })
}

/// The body of the request that sends the image in `dir`.
async fn sent(dir: &Path) -> Vec<u8> {
    let received = Arc::new(Mutex::new(Bytes::new()));
    let keep = Arc::clone(&received);
    let take = move |request: Request| async move {
        let body = body::to_bytes(request.into_body(), 1 << 20).await.expect("a whole body");
        *keep.lock() = body;
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let router = Router::new().route("/raft/snapshot", post(take));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let client = PeerClient::new(Duration::from_secs(20)).expect("a client");
    let transfer = snapshot::Transfer {
        url,
        identity: identity(),
        message: snapshot_message(),
        dir: dir.to_owned(),
    };
    snapshot::send(&client, transfer).await.expect("a receiver that takes it");
    server.abort();
    received.lock().to_vec()
}
