//! Elections among clients: one leads at a time, for as long as its lease.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::{
    Etcd,
    line::{self, created_at, end_of, operation},
    status::Error,
};
use crate::{
    node::{WatchControl, WatchNotices},
    proto::{
        etcdserverpb::{PutRequest, TxnRequest, request_op},
        mvccpb::KeyValue,
        v3electionpb::{
            CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse,
            ProclaimRequest, ProclaimResponse, ResignRequest, ResignResponse,
            election_server::Election,
        },
    },
    watch::{Event, Notice, Spec},
};

/// Texts of etcd's own for errors without a code of their own.
const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";

/// The one watch of an observer.
const WATCH: i64 = 0;

type Leaders = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl Election for Etcd {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let expired = Error::LeaseNotFound.text();
        let campaign = self.first_in_line(name.clone(), lease, value.clone(), expired).await;
        let (place, mut header) = campaign.map_err(|status| match status.message() {
            gone if gone == expired => Error::LeaseNotFound.into(),
            _ => status,
        })?;
        let leader = LeaderKey {
            name,
            key: place.key,
            rev: super::to_wire(place.revision),
            lease: place.lease,
        };
        // Who had stood for election before stands with the new value now.
        if place.found.is_some_and(|found| found != value) {
            header = self.show(leader.clone(), value).await?.header.unwrap_or(header);
        }
        Ok(Response::new(CampaignResponse { header: Some(header), leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        self.show(leader, value).await.map(Response::new)
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let prefix = line::prefix(&request.into_inner().name);
        match self.present_leader(&prefix).await? {
            (Some(kv), revision) => {
                let header = Some(self.header(revision));
                Ok(Response::new(LeaderResponse { header, kv: Some(kv) }))
            }
            (None, _) => Err(Status::unknown(NO_LEADER)),
        }
    }

    type ObserveStream = Leaders;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Leaders>, Status> {
        let prefix = line::prefix(&request.into_inner().name);
        let observer =
            Observer { etcd: self.clone(), prefix, told: VecDeque::new(), following: None };
        let leaders = stream::unfold(Some(observer), async |observer| {
            let mut observer = observer?;
            match observer.next().await {
                Ok(leader) => Some((Ok(leader), Some(observer))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        // Who does not lead any more has nothing to give up.
        let revision = u64::try_from(leader.rev).unwrap_or_default();
        let (_, header) = self.delete_if_created(&leader.key, revision).await?;
        Ok(Response::new(ResignResponse { header: Some(header) }))
    }
}

/// Since which revision somebody leads; one that cannot be is nobody's.
fn since(leader: &LeaderKey) -> Result<u64, Status> {
    u64::try_from(leader.rev)
        .ok()
        .filter(|revision| *revision > 0)
        .ok_or_else(|| Status::unknown(NOT_LEADER))
}

impl Etcd {
    /// Changes the value that a leader shows.
    async fn show(&self, leader: LeaderKey, value: Bytes) -> Result<ProclaimResponse, Status> {
        let revision = since(&leader)?;
        let LeaderKey { key, lease, .. } = leader;
        let compare = vec![created_at(&key, revision)];
        let put = PutRequest { key, value, lease, ..PutRequest::default() };
        let success = vec![operation(request_op::Request::RequestPut(put))];
        let request = TxnRequest { compare, success, failure: Vec::new() };
        let (answer, revision) = self.write(request).await?;
        if !answer.succeeded {
            return Err(Status::unknown(NOT_LEADER));
        }
        Ok(ProclaimResponse { header: Some(self.header(revision)) })
    }

    /// The leader's key, if anybody leads, as of which revision.
    async fn present_leader(&self, prefix: &Bytes) -> Result<(Option<KeyValue>, u64), Status> {
        let view = self.read().await?;
        self.first(view, line::oldest(prefix)).await
    }
}

/// Follows the leaders of an election.
struct Observer {
    etcd: Etcd,
    prefix: Bytes,
    /// What is yet to be told.
    told: VecDeque<LeaderResponse>,
    /// What is being followed; absent when it must be looked up who leads.
    following: Option<Following>,
}

/// The watch of an observer.
struct Following {
    notices: WatchNotices,
    /// The other half of the watch, which keeps it open.
    _control: WatchControl,
    /// Whether somebody leads, and it is their key that is watched; otherwise
    /// all of the election's.
    led: bool,
}

impl Observer {
    /// The next leader, or the next value of the present one.
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            if let Some(leader) = self.told.pop_front() {
                return Ok(leader);
            }
            let Some(following) = &mut self.following else {
                self.look_up().await?;
                continue;
            };
            let led = following.led;
            match following.notices.next().await {
                Some(Notice::Events { revision, events, .. }) if led => {
                    self.take_changes(revision, &events);
                }
                Some(Notice::Events { revision, events, .. }) => {
                    self.take_leader(revision, &events).await?;
                }
                // What was missed is looked up again.
                Some(Notice::Compacted { .. }) => self.following = None,
                Some(Notice::Refused { .. }) => return Err(Error::TooManyRequests.into()),
                Some(_) => {}
                None => return Err(self.etcd.no_more_notices()),
            }
        }
    }

    /// Finds who leads and begins to follow.
    async fn look_up(&mut self) -> Result<(), Status> {
        let (kv, revision) = self.etcd.present_leader(&self.prefix).await?;
        match kv {
            Some(kv) => self.begin(kv, revision, revision).await,
            // Whoever comes first will lead.
            None => {
                let spec = Spec {
                    key: self.prefix.clone(),
                    range_end: end_of(&self.prefix),
                    start_revision: revision.saturating_add(1),
                    no_delete: true,
                    ..Spec::default()
                };
                self.follow(spec, false).await
            }
        }
    }

    /// Somebody leads as of a revision: tells so, and follows from there.
    async fn begin(&mut self, kv: KeyValue, as_of: u64, store: u64) -> Result<(), Status> {
        let key = kv.key.clone();
        self.tell(Some(kv), store);
        let start_revision = as_of.saturating_add(1);
        self.follow(Spec { key, start_revision, ..Spec::default() }, true).await
    }

    async fn follow(&mut self, spec: Spec, led: bool) -> Result<(), Status> {
        let watch = self.etcd.handle().watch();
        let (control, notices) = watch.map_err(|rejected| self.etcd.rejected(rejected))?;
        control.open(WATCH, spec).await;
        self.following = Some(Following { notices, _control: control, led });
        Ok(())
    }

    fn tell(&mut self, kv: Option<KeyValue>, revision: u64) {
        let header = Some(self.etcd.header(revision));
        self.told.push_back(LeaderResponse { header, kv });
    }

    /// The leader's key changed, until it went.
    fn take_changes(&mut self, revision: u64, events: &[Arc<Event>]) {
        for event in events {
            if event.is_delete() {
                self.following = None;
                return;
            }
            self.tell(event.to_event(false).kv, revision);
        }
    }

    /// There was no leader, and somebody came.
    async fn take_leader(&mut self, revision: u64, events: &[Arc<Event>]) -> Result<(), Status> {
        let Some(first) = events.first() else { return Ok(()) };
        match first.to_event(false).kv {
            Some(kv) => self.begin(kv, first.revision, revision).await,
            None => Ok(()),
        }
    }
}
