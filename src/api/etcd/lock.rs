//! Locks that live as long as a lease.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    Etcd, checks,
    line::{LEASE_TTL_S, Place, Taken, Waited},
    status::{self, Error},
};
use crate::proto::{
    command::Op,
    etcdserverpb::{DeleteRangeRequest, ResponseHeader},
    outcome::Result as Is,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};

/// Why a lock is not had although nobody holds it: the lease went first.
const EXPIRED: &str = "mutex: session is expired";

#[tonic::async_trait]
impl Lock for Etcd {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let (place, header) = self.first_in_line(name, lease, Bytes::new(), EXPIRED).await?;
        Ok(Response::new(LockResponse { header: Some(header), key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let UnlockRequest { key } = request.into_inner();
        let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        checks::delete_range(&delete)?;
        checks::size(&delete, self.shared.limits.max_request_bytes)?;
        match self.submit(Op::DeleteRange(delete)).await? {
            (Is::DeleteRange(_), revision) => {
                Ok(Response::new(UnlockResponse { header: Some(self.header(revision)) }))
            }
            (other, _) => Err(status::unexpected(&other)),
        }
    }
}

impl Etcd {
    /// Waits in line until first; `expired` is told to who loses the lease.
    ///
    /// The caller's going away is noticed, and leaves no place behind: the
    /// work is done by a task of its own, since a write that is under way
    /// cannot be taken back. The task counts until it has cleared up, and not
    /// only as long as the caller waits for it.
    pub(super) async fn first_in_line(
        &self,
        name: Bytes,
        lease: i64,
        value: Bytes,
        expired: &'static str,
    ) -> Result<(Place, ResponseHeader), Status> {
        let turn = Arc::clone(&self.shared.waits).try_acquire_owned();
        let turn = turn.map_err(|_| Error::TooManyRequests)?;
        let given_up = CancellationToken::new();
        let etcd = self.clone();
        let waiting = Waiting { etcd, given_up: given_up.clone(), expired, _turn: turn };
        let _caller = given_up.drop_guard();
        let waited = tokio::spawn(waiting.run(name, lease, value));
        waited.await.unwrap_or_else(|_| Err(Error::Stopped.into()))
    }
}

/// A caller's wait.
struct Waiting {
    etcd: Etcd,
    /// Set when the caller is no longer there.
    given_up: CancellationToken,
    expired: &'static str,
    _turn: OwnedSemaphorePermit,
}

impl Waiting {
    /// Waits with the caller's lease, or with one that is granted here and goes
    /// again unless the caller hears of it.
    async fn run(
        self,
        name: Bytes,
        lease: i64,
        value: Bytes,
    ) -> Result<(Place, ResponseHeader), Status> {
        if lease != 0 {
            return self.wait(&name, lease, value).await;
        }
        self.check_caller()?;
        let granted = self.etcd.grant(0, LEASE_TTL_S).await?.0.id;
        let waited = self.wait(&name, granted, value).await;
        if waited.is_err() {
            self.etcd.leave(Taken::Lease(granted)).await;
        }
        waited
    }

    async fn wait(
        &self,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<(Place, ResponseHeader), Status> {
        self.check_caller()?;
        let place = self.etcd.enter(name, lease, value).await?;
        let waited = self.given_up.run_until_cancelled(self.etcd.wait(&place)).await;
        let status = match (self.check_caller(), waited) {
            // The answer would reach nobody.
            (Err(gone), _) => gone,
            (Ok(()), Some(Ok(Waited::First(revision)))) => {
                return Ok((place, self.etcd.header(revision)));
            }
            (Ok(()), Some(Ok(Waited::Gone))) => Status::unknown(self.expired),
            (Ok(()), Some(Err(status))) => status,
            (Ok(()), None) => caller_gone(),
        };
        // A place that was there before belongs to another call of this lease.
        if place.found.is_none() {
            self.etcd.leave(Taken::Place(&place)).await;
        }
        Err(status)
    }

    /// Nothing is begun for a caller who has gone.
    fn check_caller(&self) -> Result<(), Status> {
        if self.given_up.is_cancelled() { Err(caller_gone()) } else { Ok(()) }
    }
}

fn caller_gone() -> Status {
    Status::cancelled("the caller has gone")
}
