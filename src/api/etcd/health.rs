//! gRPC's health service: this member serves while it knows of a leader, unless
//! the CORRUPT alarm names it.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::Etcd;
use crate::{
    node::Handle,
    proto::grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
        health_server::Health,
    },
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
        } else if self.handle().standing().leader_id != 0 && !self.handle().is_accused() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

/// Waits until a member serves again; whether that can still come.
async fn until_it_serves(handle: &Handle) -> bool {
    loop {
        if !handle.until_led(true).await {
            return false;
        }
        if !handle.is_accused() {
            return true;
        }
        if !handle.until_accused(false).await {
            return false;
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
                let handle = etcd.handle();
                let goes_on = match told {
                    None => true,
                    Some(ServingStatus::Serving) => tokio::select! {
                        goes_on = handle.until_led(false) => goes_on,
                        accused = handle.until_accused(true) => accused,
                    },
                    Some(ServingStatus::NotServing) => until_it_serves(handle).await,
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
