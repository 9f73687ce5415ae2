//! gRPC's health service: this member serves while it knows of a leader.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::Etcd;
use crate::proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

/// The services that can be asked for by name; the empty name is the server.
const SERVICES: [&str; 8] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "v3lockpb.Lock",
    "v3electionpb.Election",
];

impl Etcd {
    fn health(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            ServingStatus::ServiceUnknown
        } else if self.handle().standing().leader_id != 0 {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Etcd {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.health(&request.into_inner().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(answer(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let states = stream::unfold((self.clone(), None), move |(etcd, told)| {
            let service = service.clone();
            async move {
                let goes_on = match told {
                    None => true,
                    Some(ServingStatus::Serving) => etcd.handle().until_led(false).await,
                    Some(ServingStatus::NotServing) => etcd.handle().until_led(true).await,
                    // There is nothing that could change.
                    Some(_) => std::future::pending().await,
                };
                if !goes_on {
                    return None;
                }
                let status = etcd.health(&service);
                Some((Ok(answer(status)), (etcd, Some(status))))
            }
        });
        Ok(Response::new(Box::pin(states)))
    }
}
