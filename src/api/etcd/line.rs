//! Waiting in line: whoever has the oldest key below a name holds the lock or
//! leads. A place is a key that its lease keeps.

use bytes::Bytes;
use slog::debug;
use tonic::Status;

use super::{Etcd, checks, status};
use crate::{
    machine::View,
    proto::{
        RevokeLease,
        command::Op,
        etcdserverpb::{
            Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader,
            TxnRequest, TxnResponse,
            compare::{CompareResult, CompareTarget, TargetUnion},
            range_request::{SortOrder, SortTarget},
            request_op::Request,
            response_op::Response,
        },
        mvccpb::KeyValue,
        outcome::Result as Is,
    },
    storage::rocks::RocksEngine,
    watch::{Notice, Spec},
};

/// The time of a lease that is granted for whoever brings none, in seconds.
pub(super) const LEASE_TTL_S: i64 = 60;

/// How often leaving the line is tried; the lease ends it in any case.
const LEAVE_TRIES: u32 = 5;

/// The watches of a wait.
const BEFORE: i64 = 0;
const OWN: i64 = 1;

/// A place in the line.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// What all keys of the line begin with.
    pub(super) prefix: Bytes,
    pub(super) key: Bytes,
    pub(super) lease: i64,
    /// The create_revision of the key, by which the line is ordered.
    pub(super) revision: u64,
    /// The value with which the place was found taken by its own lease; `None`
    /// when it is new.
    pub(super) found: Option<Bytes>,
}

/// What a call took that it gives back when it fails.
#[derive(Debug, Clone, Copy)]
pub(super) enum Taken<'a> {
    /// A place, whose lease is the caller's.
    Place(&'a Place),
    /// A lease, and with it whatever it keeps.
    Lease(i64),
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The place is the first, as of this revision of the store.
    First(u64),
    /// The key went, most likely with its lease.
    Gone,
}

/// What the keys of a line begin with.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a lease in a line: the lease in hexadecimal digits, with a sign.
pub(super) fn key(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// All keys of a line, the oldest first, but only one.
pub(super) fn oldest(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

/// The first key after those that begin so; prefixes end with a slash.
pub(super) fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end.into()
}

/// The key exists since this revision; 0 when it does not.
pub(super) fn created_at(key: &Bytes, revision: u64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(super::to_wire(revision))),
        ..Compare::default()
    }
}

pub(super) fn operation(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

impl Etcd {
    /// Takes a place in the line, or finds the one that the lease has.
    pub(super) async fn enter(
        &self,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<Place, Status> {
        let prefix = prefix(name);
        let key = key(&prefix, lease);
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![operation(Request::RequestPut(put))],
            failure: vec![operation(Request::RequestRange(get))],
        };
        let (answer, revision) = self.write(request).await?;
        let mut place = Place { prefix, key, lease, revision, found: None };
        if !answer.succeeded {
            let first = answer.responses.into_iter().next().and_then(|first| first.response);
            let Some(Response::ResponseRange(mut range)) = first else {
                return Err(status::unexpected(&first));
            };
            let kv =
                range.kvs.pop().ok_or_else(|| status::unexpected(&"a key that is not there"))?;
            place.revision = u64::try_from(kv.create_revision).unwrap_or_default();
            place.found = Some(kv.value);
        }
        Ok(place)
    }

    /// Waits until nobody is before this place.
    pub(super) async fn wait(&self, place: &Place) -> Result<Waited, Status> {
        loop {
            let view = self.read().await?;
            // The revision first: what changes after it is watched for.
            let revision = self.sound(view.revision())?;
            if !self.has(&view, place)? {
                return Ok(Waited::Gone);
            }
            let Some(before) = self.before(view, place).await? else {
                return Ok(Waited::First(revision));
            };
            if self.until_gone(before.key, place, revision).await? == OWN {
                return Ok(Waited::Gone);
            }
        }
    }

    /// Gives up what a call has taken.
    pub(super) async fn leave(&self, taken: Taken<'_>) {
        for attempt in 1..=LEAVE_TRIES {
            let left = match taken {
                // Only that: the key may have been made again since.
                Taken::Place(place) => {
                    self.delete_if_created(&place.key, place.revision).await.map(drop)
                }
                Taken::Lease(id) => {
                    self.submit(Op::RevokeLease(RevokeLease { id })).await.map(drop)
                }
            };
            match left {
                Ok(()) => return,
                Err(gone) if gone.message() == status::Error::LeaseNotFound.text() => return,
                Err(why) => {
                    debug!(self.shared.logger, "cannot leave a line"; "error" => %why);
                    tokio::time::sleep(self.handle().election_timeout() * attempt).await;
                }
            }
        }
    }

    /// Deletes a key that exists since a revision; whether it did.
    pub(super) async fn delete_if_created(
        &self,
        key: &Bytes,
        revision: u64,
    ) -> Result<(bool, ResponseHeader), Status> {
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        let request = TxnRequest {
            compare: vec![created_at(key, revision)],
            success: vec![operation(Request::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        let (answer, revision) = self.write(request).await?;
        Ok((answer.succeeded, self.header(revision)))
    }

    /// Carries out a transaction; also gives the store's revision after it.
    pub(super) async fn write(&self, request: TxnRequest) -> Result<(TxnResponse, u64), Status> {
        checks::txn(&request)?;
        checks::size(&request, self.shared.limits.max_request_bytes)?;
        match self.submit(Op::Txn(request)).await? {
            (Is::Txn(answer), revision) => Ok((answer, revision)),
            (other, _) => Err(status::unexpected(&other)),
        }
    }

    /// The first pair that a range of few answers.
    pub(super) async fn first(
        &self,
        view: View<RocksEngine>,
        request: RangeRequest,
    ) -> Result<(Option<KeyValue>, u64), Status> {
        let max_bytes = self.shared.limits.max_response_bytes;
        let slot = self.shared.reads.line_slot(self.handle().request_timeout()).await;
        let slot = slot.map_err(|_| status::Error::TooManyRequests)?;
        let answer = self.scan_with(slot, move || Ok(view.range(&request, max_bytes))).await?;
        let answer = self.ruled(answer)?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((answer.kvs.into_iter().next(), u64::try_from(revision).unwrap_or_default()))
    }

    fn has(&self, view: &View<RocksEngine>, place: &Place) -> Result<bool, Status> {
        let record = self.sound(view.get(&place.key))?;
        Ok(record.is_some_and(|record| record.create_revision == place.revision))
    }

    /// The next older key in the line.
    async fn before(
        &self,
        view: View<RocksEngine>,
        place: &Place,
    ) -> Result<Option<KeyValue>, Status> {
        let Some(older) = place.revision.checked_sub(1).filter(|older| *older > 0) else {
            return Ok(None);
        };
        let request = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            max_create_revision: super::to_wire(older),
            keys_only: true,
            ..oldest(&place.prefix)
        };
        Ok(self.first(view, request).await?.0)
    }

    /// Waits until the key before the place goes, or the place itself; which.
    async fn until_gone(&self, before: Bytes, place: &Place, since: u64) -> Result<i64, Status> {
        let watch = self.handle().watch();
        let (control, mut notices) = watch.map_err(|rejected| self.rejected(rejected))?;
        for (number, key) in [(BEFORE, before), (OWN, place.key.clone())] {
            let start_revision = since.saturating_add(1);
            let spec = Spec { key, start_revision, no_put: true, ..Spec::default() };
            control.open(number, spec).await;
        }
        loop {
            match notices.next().await {
                Some(Notice::Events { watch, .. }) => return Ok(watch),
                // What was missed is looked up again.
                Some(Notice::Compacted { .. }) => return Ok(BEFORE),
                Some(Notice::Refused { .. }) => return Err(status::Error::TooManyRequests.into()),
                Some(_) => {}
                None => return Err(self.no_more_notices()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_by_their_lease() {
        let prefix = prefix(b"name");
        assert_eq!(prefix, "name/");
        assert_eq!(key(&prefix, 0x1234_abcd), "name/1234abcd");
        assert_eq!(key(&prefix, -10), "name/-a");
        assert_eq!(key(&prefix, i64::MIN), "name/-8000000000000000");
        assert_eq!(end_of(&prefix), "name0");
    }
}
