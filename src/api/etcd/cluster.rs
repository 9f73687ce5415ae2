//! The Cluster service: who belongs to the cluster.
//!
//! Ids are small numbers here, chosen by the server as the next one never used.
//! A member joins as a learner whatever was asked for; unless it shall stay
//! one, it becomes a voter by itself once it has caught up.

use tonic::{Request, Response, Status};

use super::{Etcd, status::Error};
use crate::{
    config,
    machine::member,
    proto::{
        self, AddMember, Members, PromoteMember, RemoveMember, SetPeerUrl,
        command::Op,
        etcdserverpb::{
            Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
            MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
            MemberUpdateRequest, MemberUpdateResponse, ResponseHeader, cluster_server::Cluster,
        },
        outcome::Result as Is,
    },
};

/// Additions that may lose the race for the next id before one gives up.
const MAX_ATTEMPTS: usize = 8;

/// Members that stay learners, as etcd allows them unless told otherwise.
/// Those that are about to become voters do not count.
const MAX_LEARNERS: usize = 1;

impl Etcd {
    /// As in etcd, the headers of this service carry no revision.
    fn cluster_header(&self) -> Option<ResponseHeader> {
        Some(self.header(0))
    }

    /// Carries out a change of one member; conflicts become the error that
    /// suits the request.
    async fn change_member(&self, op: Op, conflict: Error) -> Result<proto::Member, Status> {
        match self.handle().submit(op).await {
            Err(crate::error::Rejected::Conflict(_)) => Err(conflict.into()),
            Err(rejected) => Err(self.rejected(rejected)),
            Ok(outcome) => match outcome.result {
                Some(Is::Member(member)) => Ok(member),
                Some(Is::MemberNotFound(_)) => Err(Error::MemberNotFound.into()),
                Some(Is::Conflict(_)) => Err(conflict.into()),
                _ => Err(super::status::unexpected(&outcome)),
            },
        }
    }

    /// The members after a change that was just answered.
    async fn members_now(&self) -> Result<Vec<Member>, Status> {
        self.catch_up().await?;
        Ok(list(&self.handle().members()))
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        let peer_url = only_url(&request.peer_ur_ls)?;
        for _ in 0..MAX_ATTEMPTS {
            self.catch_up().await?;
            let members = self.handle().members();
            if members.members.iter().any(|member| member.peer_url == peer_url) {
                return Err(Error::PeerUrlExists.into());
            }
            let learners =
                members.members.iter().filter(|m| m.learner && !m.promote_when_caught_up);
            if request.is_learner && learners.count() >= MAX_LEARNERS {
                return Err(Error::TooManyLearners.into());
            }
            let op = Op::AddMember(AddMember {
                id: next_id(&members),
                peer_url: peer_url.clone(),
                promote_when_caught_up: !request.is_learner,
            });
            match self.change_member(op, Error::MemberExists).await {
                Ok(added) => {
                    return Ok(Response::new(MemberAddResponse {
                        header: self.cluster_header(),
                        member: Some(describe(&added)),
                        members: self.members_now().await?,
                    }));
                }
                // Somebody else took the id, or the URL.
                Err(status) if status.message() == Error::MemberExists.text() => {}
                Err(status) => return Err(status),
            }
        }
        Err(Error::TooManyRequests.into())
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let op = Op::RemoveMember(RemoveMember { id: request.into_inner().id });
        self.change_member(op, Error::NotEnoughStarted).await?;
        // The member that was removed may be this one, which cannot read any more.
        let members = list(&self.handle().members());
        Ok(Response::new(MemberRemoveResponse { header: self.cluster_header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let peer_url = only_url(&peer_ur_ls)?;
        let op = Op::SetPeerUrl(SetPeerUrl { id, peer_url });
        self.change_member(op, Error::PeerUrlExists).await?;
        let members = self.members_now().await?;
        Ok(Response::new(MemberUpdateResponse { header: self.cluster_header(), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.catch_up().await?;
        }
        let members = list(&self.handle().members());
        Ok(Response::new(MemberListResponse { header: self.cluster_header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let id = request.into_inner().id;
        self.catch_up().await?;
        match member(&self.handle().members(), id) {
            None => return Err(Error::MemberNotFound.into()),
            Some(member) if !member.learner => return Err(Error::MemberNotLearner.into()),
            Some(_) => {}
        }
        let op = Op::PromoteMember(PromoteMember { id });
        self.change_member(op, Error::LearnerNotReady).await?;
        let members = self.members_now().await?;
        Ok(Response::new(MemberPromoteResponse { header: self.cluster_header(), members }))
    }
}

fn list(members: &Members) -> Vec<Member> {
    members.members.iter().map(describe).collect()
}

/// A member as etcd's clients know it: one that never started has neither a
/// name nor a client URL.
fn describe(member: &proto::Member) -> Member {
    let started = !member.client_url.is_empty();
    Member {
        id: member.id,
        name: if started { format!("metastore-{}", member.id) } else { String::new() },
        peer_ur_ls: vec![member.peer_url.clone()],
        client_ur_ls: if started { vec![member.client_url.clone()] } else { Vec::new() },
        is_learner: member.learner,
    }
}

/// The smallest id above all that were ever used.
fn next_id(members: &Members) -> u64 {
    let present = members.members.iter().map(|member| member.id);
    let removed = members.removed_ids.iter().copied();
    present.chain(removed).max().map_or(1, |last| last.saturating_add(1))
}

/// The one peer URL of a request; members here have exactly one.
fn only_url(urls: &[String]) -> Result<String, Status> {
    match urls {
        // As in etcd, the port has to be there.
        [url] if names_port(url) => {
            config::normalize_url(url).map_err(|_| Error::BadMemberUrls.into())
        }
        _ => Err(Error::BadMemberUrls.into()),
    }
}

fn names_port(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_used_twice() {
        let member = |id| proto::Member { id, ..proto::Member::default() };
        let mut members = Members { members: vec![member(1), member(3)], ..Members::default() };
        assert_eq!(next_id(&members), 4);
        members.removed_ids = vec![2, 9];
        assert_eq!(next_id(&members), 10);
        assert_eq!(next_id(&Members::default()), 1);
    }

    #[test]
    fn a_member_has_one_peer_url() {
        let url = |text: &str| text.to_owned();
        assert_eq!(only_url(&[url("http://A:1/")]).ok(), Some(url("http://a:1")));
        for wrong in [
            vec![],
            vec![url("ftp://a:1")],
            vec![url("http://a")],
            vec![url("http://[::1]")],
            vec![url("http://a:1"), url("http://b:1")],
        ] {
            let status = only_url(&wrong).expect_err("refused");
            assert_eq!(status.message(), Error::BadMemberUrls.text());
        }
    }

    #[test]
    fn a_member_that_never_started_has_no_name() {
        let mut member = proto::Member { id: 4, ..proto::Member::default() };
        assert_eq!(describe(&member).name, "");
        assert!(describe(&member).client_ur_ls.is_empty());
        member.client_url = "http://a:1".to_owned();
        assert_eq!(describe(&member).name, "metastore-4");
        assert_eq!(describe(&member).client_ur_ls, ["http://a:1"]);
    }
}
