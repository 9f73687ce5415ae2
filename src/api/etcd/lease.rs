//! Leases: keys that are deleted when nobody renews what holds them.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Etcd, MAX_LEASE_TTL_S,
    status::{self, Error},
};
use crate::proto::{
    GrantLease, LeaseRecord, RevokeLease,
    command::Op,
    etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
        LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_server::Lease,
    },
    outcome::Result as Is,
};

/// How often a lease id that was drawn here may be found taken.
const DRAWS: usize = 3;

/// Renewals of one stream that may be under way at once; each waits for a
/// round of the leader's, which one round does for all.
const RENEWALS_AT_ONCE: usize = 64;

/// What [`Lease::lease_time_to_live`] says of a lease that does not exist.
const NO_TTL: i64 = -1;

type KeepAlives =
    Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl Lease for Etcd {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        let (lease, revision) = self.grant(id, ttl).await?;
        Ok(Response::new(LeaseGrantResponse {
            header: Some(self.header(revision)),
            id: lease.id,
            ttl: lease.ttl_s,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let LeaseRevokeRequest { id } = request.into_inner();
        let (_, revision) = self.submit(Op::RevokeLease(RevokeLease { id })).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.header(revision)) }))
    }

    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let etcd = self.clone();
        let renew = move |request: Result<LeaseKeepAliveRequest, Status>| {
            let etcd = etcd.clone();
            async move { etcd.renew(request?.id).await }
        };
        let answers = request.into_inner().map(renew).buffered(RENEWALS_AT_ONCE);
        // The first error is the last answer.
        let answers = stream::unfold(Some(answers), async |answers| {
            let mut answers = answers?;
            let answer = answers.next().await?;
            let rest = answer.is_ok().then_some(answers);
            Some((answer, rest))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let time = self.handle().lease_time(id).await;
        let time = time.map_err(|rejected| self.rejected(rejected))?;
        let mut answer = LeaseTimeToLiveResponse { id, ttl: NO_TTL, ..Default::default() };
        if time.exists {
            answer.ttl = time.remaining_s;
            answer.granted_ttl = time.granted_ttl_s;
            if keys {
                let view = self.read().await?;
                answer.keys = self.scan(move || view.lease_keys(id)).await?;
            }
        }
        answer.header = Some(self.header_now()?);
        self.answer(answer)
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let view = self.read().await?;
        let leases = self.scan(move || view.leases()).await?;
        let leases = leases.iter().map(|lease| LeaseStatus { id: lease.id }).collect();
        self.answer(LeaseLeasesResponse { header: Some(self.header_now()?), leases })
    }
}

impl Etcd {
    /// Grants a lease for so many seconds, at least for an election; under an
    /// id that is drawn if it is 0. Also gives the store's revision.
    pub(super) async fn grant(&self, id: i64, ttl_s: i64) -> Result<(LeaseRecord, u64), Status> {
        if ttl_s > MAX_LEASE_TTL_S {
            return Err(Error::LeaseTtlTooLarge.into());
        }
        let ttl_s = ttl_s.max(self.handle().min_lease_ttl_s());
        let mut draws = if id == 0 { DRAWS } else { 1 };
        loop {
            draws -= 1;
            let id = if id == 0 { rand::random_range(1..=i64::MAX) } else { id };
            match self.submit(Op::GrantLease(GrantLease { id, ttl_s })).await {
                Ok((Is::Lease(lease), revision)) => return Ok((lease, revision)),
                Ok((other, _)) => return Err(status::unexpected(&other)),
                Err(taken) if draws > 0 && taken.message() == Error::LeaseExists.text() => {}
                Err(status) => return Err(status),
            }
        }
    }

    async fn renew(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let time = self.handle().keep_lease_alive(id).await;
        let time = time.map_err(|rejected| self.rejected(rejected))?;
        let ttl = if time.exists { time.remaining_s } else { 0 };
        Ok(LeaseKeepAliveResponse { header: Some(self.header_now()?), id, ttl })
    }
}
