//! Concurrent writers that remember what they were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use tokio::task::JoinHandle;

use crate::process::{Cluster, Endpoint, eventually};

/// Pause after a failed request, so that writers leave the CPU to an election.
const BACK_OFF: Duration = Duration::from_millis(10);

/// What a writer was told about its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// 204: it must be there.
    Acknowledged,
    /// 503 or 429: it must not be there, ever.
    Refused,
    /// 504, or no answer: either.
    Unknown,
}

/// Writers at work. Each key is written once.
pub struct Load {
    writers: Vec<JoinHandle<Vec<(String, Told)>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
}

async fn write(endpoint: &Endpoint, key: &str) -> Told {
    let reply = endpoint.request(Method::PUT, &format!("/{key}"), key.to_owned()).await;
    match reply {
        Ok(reply) if reply.status == 204 => Told::Acknowledged,
        Ok(reply) if matches!(reply.status, 429 | 503) => Told::Refused,
        Ok(reply) if reply.status == 504 => Told::Unknown,
        Ok(reply) => panic!("PUT answered {}: {}", reply.status, reply.text()),
        Err(_) => Told::Unknown,
    }
}

impl Load {
    /// Starts `writers` tasks that write through all the endpoints in turn.
    pub fn start(endpoints: &[Endpoint], writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let writer = |writer: usize| {
            let endpoints = endpoints.to_vec();
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let mut history = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("load-{writer}-{}", history.len());
                    let told = write(&endpoints[(writer + history.len()) % endpoints.len()], &key);
                    let told = told.await;
                    history.push((key, told));
                    if told == Told::Acknowledged {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    } else {
                        tokio::time::sleep(BACK_OFF).await;
                    }
                }
                history
            })
        };
        let writers = (0..writers).map(writer).collect();
        Self { writers, stop, acknowledged }
    }

    /// Waits until `more` further writes were acknowledged.
    pub async fn acknowledge(&self, more: usize) {
        let target = self.acknowledged.load(Ordering::Relaxed) + more;
        let reached = async || (self.acknowledged.load(Ordering::Relaxed) >= target).then_some(());
        eventually("writes are acknowledged again", reached).await;
    }

    /// Stops the writers and checks every promise they were given, through
    /// all the live nodes in turn.
    ///
    /// # Panics
    /// When an acknowledged write is absent or a refused one present.
    pub async fn verify(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        for writer in self.writers {
            history.extend(writer.await.expect("a writer's history"));
        }
        cluster.assert_same_state().await;
        let endpoints = cluster.endpoints();
        for (n, (key, told)) in history.iter().enumerate() {
            let endpoint = &endpoints[n % endpoints.len()];
            let found = endpoint.get(key).await;
            if let Some(value) = &found {
                assert_eq!(value, key, "the value that was written");
            }
            match told {
                Told::Acknowledged => {
                    assert!(found.is_some(), "{key} was acknowledged and is lost")
                }
                Told::Refused => assert!(found.is_none(), "{key} was refused and is there"),
                Told::Unknown => {}
            }
        }
    }
}
