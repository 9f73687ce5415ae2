//! A client that holds leases, one after the other.

use std::time::Duration;

use metastore_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, kv_client::KvClient,
    lease_client::LeaseClient as Leases,
};
use tokio::time::{sleep, timeout};
use tokio_stream::once;
use tonic::transport::Channel;

use super::{ANSWER_LIMIT, Dice, Shared, Target, target::Connections, value::encode};
use crate::{
    Result,
    history::{LeaseLife, Time},
};

/// What all keys of leases begin with.
pub const PREFIX: &str = "l/";

/// The times for which leases are granted, in seconds.
const TTL_S: (u64, u64) = (3, 8);

/// How often a lease is renewed at the most before it is left to end.
const MAX_RENEWALS: u64 = 8;

/// The longest pause between two renewals, in milliseconds.
const MAX_PAUSE_MS: u64 = 1_500;

pub struct LeaseClient {
    number: u64,
    connections: Connections<Channel>,
    shared: Shared,
    dice: Dice,
}

impl LeaseClient {
    pub fn new(number: u64, targets: &[Target], shared: Shared, dice: Dice) -> Result<Self> {
        let connections = Connections::new(targets, Target::channel)?;
        Ok(Self { number, connections, shared, dice })
    }

    /// Holds leases until the load ends; all it held. They end by themselves.
    pub async fn run(mut self) -> Vec<LeaseLife> {
        let mut lives = Vec::new();
        while !self.shared.stop.is_cancelled() {
            let key = format!("{PREFIX}{}/{}", self.number, lives.len());
            if let Some(life) = self.live(key).await {
                lives.push(life);
            } else {
                self.connections.change(&mut self.dice);
            }
            self.pause().await;
        }
        lives
    }

    async fn pause(&mut self) {
        let pause = Duration::from_millis(self.dice.between(1, MAX_PAUSE_MS));
        let stop = self.shared.stop.clone();
        // The end of the load ends the pause too.
        let _ = timeout(pause, stop.cancelled()).await;
    }

    /// One lease from its grant to its last renewal.
    async fn live(&mut self, key: String) -> Option<LeaseLife> {
        let ttl = self.dice.between(TTL_S.0, TTL_S.1).cast_signed();
        let called = self.shared.clock.now();
        let (_, channel) = self.connections.present();
        let mut leases = Leases::new(channel.clone());
        let grant = leases.lease_grant(LeaseGrantRequest { ttl, id: 0 });
        let granted = timeout(ANSWER_LIMIT, grant).await.ok()?.ok()?.into_inner();
        let renewals = vec![(called, granted.ttl.unsigned_abs())];
        let mut life = LeaseLife { id: granted.id, key, attached: false, renewals, gone: None };
        let put = PutRequest {
            key: life.key.clone().into(),
            value: encode(self.shared.values.next()),
            lease: life.id,
            ..PutRequest::default()
        };
        let put = timeout(ANSWER_LIMIT, KvClient::new(channel).put(put)).await;
        life.attached = put.is_ok_and(|put| put.is_ok());
        for _ in 0..self.dice.below(MAX_RENEWALS) {
            self.pause().await;
            if self.shared.stop.is_cancelled() {
                break;
            }
            match self.renew(life.id).await {
                Some((_, 0)) => {
                    life.gone = Some(self.shared.clock.now());
                    break;
                }
                Some(renewal) => life.renewals.push(renewal),
                None => {
                    self.connections.change(&mut self.dice);
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.shared.figures.count("lease renewals", life.renewals.len() as u64 - 1);
        Some(life)
    }

    /// Renews a lease: when that was asked for, and the seconds it then has;
    /// 0 when there is no such lease any more.
    async fn renew(&self, id: i64) -> Option<(Time, u64)> {
        let (_, channel) = self.connections.present();
        let mut leases = Leases::new(channel);
        let called = self.shared.clock.now();
        let renewal = async {
            let requests = once(LeaseKeepAliveRequest { id });
            leases.lease_keep_alive(requests).await?.into_inner().message().await
        };
        let answer = timeout(ANSWER_LIMIT, renewal).await.ok()?.ok()??;
        Some((called, answer.ttl.unsigned_abs()))
    }
}
