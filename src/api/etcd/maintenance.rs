//! The Maintenance service: alarms, status, hashes, space and leadership.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{Etcd, status::Error, to_wire};
use crate::{
    error::Rejected,
    machine::member,
    proto::{
        SetAlarm,
        command::Op,
        etcdserverpb::{
            AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
            DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
            HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, StatusRequest,
            StatusResponse, alarm_request::AlarmAction, maintenance_server::Maintenance,
        },
        outcome::Result as Is,
    },
};

/// The version of etcd's API that clients may count on. Some ask for it before
/// they use a feature.
pub const ETCD_VERSION: &str = "3.6.0";

/// How long Defragment waits for the rewriting to end; it goes on afterwards.
const DEFRAGMENT_PATIENCE: Duration = Duration::from_secs(2);

#[tonic::async_trait]
impl Maintenance for Etcd {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        let (action, kind) = (request.action(), request.alarm());
        let (alarms, revision) = match action {
            AlarmAction::Get => {
                self.catch_up().await?;
                let view = self.examine()?;
                let revision = self.sound(view.revision())?;
                let mut alarms = self.sound(view.alarms())?.alarms;
                alarms.retain(|alarm| {
                    (kind == AlarmType::None || alarm.alarm() == kind)
                        && (request.member_id == 0 || alarm.member_id == request.member_id)
                });
                (alarms, revision)
            }
            AlarmAction::Activate | AlarmAction::Deactivate => {
                let (member, alarm) = (request.member_id, request.alarm);
                let active = action == AlarmAction::Activate;
                let op = Op::SetAlarm(SetAlarm { member, alarm, active });
                match self.submit(op).await? {
                    // As in etcd, the answer names the alarms that changed.
                    (Is::Alarms(changed), revision) => (changed.alarms, revision),
                    (other, _) => return Err(super::status::unexpected(&other)),
                }
            }
        };
        Ok(Response::new(AlarmResponse { header: Some(self.header(revision)), alarms }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let status = self.handle().status();
        let mut errors = Vec::new();
        if status.leader_id == 0 {
            errors.push(Error::NoLeader.text().to_owned());
        }
        errors.extend(self.handle().alarms().alarms.iter().map(|alarm| {
            format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
        }));
        // What the quota counts: the data without the log.
        let size = self.handle().state_size_bytes().unwrap_or(0);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            header: Some(self.header(status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            db_size_in_use: size,
            leader: status.leader_id,
            raft_index: status.commit_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            is_learner: status.learner,
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.shared.limits.quota_backend_bytes)
                .unwrap_or(i64::MAX),
            ..StatusResponse::default()
        }))
    }

    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        let Ok(turn) = self.shared.reclaiming.clone().try_acquire_owned() else {
            // It is under way, and needs no second one.
            return Ok(Response::new(DefragmentResponse::default()));
        };
        let handle = self.handle().clone();
        let reclaiming = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            handle.reclaim_space()
        });
        match tokio::time::timeout(DEFRAGMENT_PATIENCE, reclaiming).await {
            Ok(Ok(Err(rejected))) => Err(self.rejected(rejected)),
            Ok(Err(_)) => Err(Error::Stopped.into()),
            Ok(Ok(Ok(()))) | Err(_) => Ok(Response::new(DefragmentResponse::default())),
        }
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let view = self.examine()?;
        let hash = self.scan(move || view.hash()).await?;
        let (first, _) = hash.hash.split_first_chunk().unwrap_or((&[0; 4], &[]));
        Ok(Response::new(HashResponse {
            header: Some(self.header(hash.revision)),
            hash: u32::from_be_bytes(*first),
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let asked = request.into_inner().revision;
        // Negative revisions are as far away as those of the future.
        let Ok(revision) = u64::try_from(asked) else { return Err(Error::FutureRevision.into()) };
        let view = self.examine()?;
        let ruled = self.scan(move || view.hash_kv(revision)).await?;
        let hash = ruled.map_err(|refused| self.refused(refused))?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.header(hash.revision)),
            hash: hash.hash,
            compact_revision: to_wire(hash.compacted),
            hash_revision: to_wire(hash.hashed_revision),
        }))
    }

    type SnapshotStream = super::snapshot::Chunks;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.snapshot_chunks().await.map(Response::new)
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let target = request.into_inner().target_id;
        let standing = self.handle().standing();
        if standing.leader_id != standing.member_id {
            return Err(Error::NotLeader.into());
        }
        let members = self.handle().members();
        if member(&members, target).is_none_or(|member| member.learner) {
            return Err(Error::BadLeaderTransferee.into());
        }
        match self.handle().transfer_leader(target).await {
            Ok(()) => Ok(Response::new(MoveLeaderResponse::default())),
            Err(Rejected::Conflict(_)) => Err(Error::TimeoutLeaderTransfer.into()),
            Err(rejected) => Err(self.rejected(rejected)),
        }
    }

    async fn downgrade(
        &self,
        _request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(Status::unimplemented(
            "etcdserver: there is no older version of this server to downgrade to",
        ))
    }
}
