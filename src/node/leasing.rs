//! Leases, as far as they live in the leader's memory.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc::error::TrySendError, oneshot},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Handle, Parts,
    forwarding::RETRY_PAUSE,
    handle::Running,
    lease_feed::LeaseFeed,
    lease_pump::{Asking, LeasePump},
};
use crate::{
    error::Rejected,
    lease::{Keeper, Options, Question, Reply},
    proto::{LeaseTime, forward_request::Request, forward_response::Result as Response},
    transport::ForwardError,
};

impl Handle {
    /// Renews a lease, on whichever member leads. Once this returns, no leader
    /// change lets the lease end before its full time from this call on.
    ///
    /// # Errors
    /// When the leader cannot be asked or did not confirm that it still leads.
    /// Asking again is always safe.
    pub async fn keep_lease_alive(&self, id: i64) -> Result<LeaseTime, Rejected> {
        self.ask_leader(id, Question::KeepAlive).await
    }

    /// How long a lease has left, by the leader's clock: whole seconds, 0 when
    /// it is about to be revoked.
    ///
    /// # Errors
    /// As [`Handle::keep_lease_alive`].
    pub async fn lease_time(&self, id: i64) -> Result<LeaseTime, Rejected> {
        self.ask_leader(id, Question::TimeToLive).await.map_err(|rejected| match rejected {
            Rejected::Unknown(why) => Rejected::NotApplied(why),
            other => other,
        })
    }

    /// Asks whichever member leads. Every question may be asked twice, so that
    /// it is asked until it is answered or the time is over.
    async fn ask_leader(&self, id: i64, question: Question) -> Result<LeaseTime, Rejected> {
        self.check_sound()?;
        let deadline = self.deadline();
        let running = self.running(deadline).await?;
        let mut role = running.role.clone();
        let mut left_this_node = false;
        loop {
            let leader = role.borrow_and_update().leader_id;
            let mut why = "the cluster has no leader".to_owned();
            let answer = if leader == self.shared.id {
                ask_own(&running, id, question, deadline).await
            } else if leader != 0 {
                let mut led = role.clone();
                let gone = led.wait_for(|role| role.leader_id != leader);
                tokio::select! {
                    answer = self.ask_member(&running, leader, id, question, deadline) => answer,
                    _ = gone => Err(ForwardError::Unknown(format!("member {leader} lost its lead"))),
                }
            } else {
                Ok(Reply::NotLeader)
            };
            match answer {
                Ok(Reply::Lease(time)) => return Ok(time),
                Ok(Reply::Rejected(rejected)) => return Err(rejected),
                Ok(Reply::NotLeader) if leader == 0 => {}
                Ok(Reply::NotLeader) => why = format!("member {leader} does not lead any more"),
                Err(ForwardError::Busy) => {
                    why = "too many requests wait for the leader; retry in a moment".to_owned();
                }
                Err(ForwardError::NeverSent(cause)) => {
                    why = format!("the leader, member {leader}, cannot be reached: {cause}");
                }
                Err(ForwardError::Unknown(cause)) => {
                    left_this_node = true;
                    why = cause;
                }
            }
            let pause = Instant::now() + RETRY_PAUSE;
            if pause >= deadline {
                let fate = if left_this_node { Rejected::Unknown } else { Rejected::NotApplied };
                return Err(fate(why));
            }
            tokio::select! {
                Ok(()) = role.changed() => {}
                () = sleep_until(pause) => {}
            }
        }
    }

    async fn ask_member(
        &self,
        running: &Running,
        leader: u64,
        id: i64,
        question: Question,
        deadline: Instant,
    ) -> Result<Reply, ForwardError> {
        let request = match question {
            Question::KeepAlive => Request::KeepAlive(id),
            Question::TimeToLive => Request::TimeToLive(id),
        };
        let response = self.forward(running, leader, request, deadline).await?;
        Ok(Reply::Rejected(match response.result {
            Some(Response::Lease(time)) => return Ok(Reply::Lease(time)),
            Some(Response::NotLeader(_)) => return Ok(Reply::NotLeader),
            Some(Response::NotApplied(why)) => Rejected::NotApplied(why),
            Some(Response::Overloaded(why)) => Rejected::Overloaded(why),
            Some(Response::Unknown(why)) => Rejected::Unknown(why),
            _ => Rejected::Unknown("the leader's answer cannot be understood".to_owned()),
        }))
    }

    /// Answers what another member passed on, if this one leads.
    pub(super) async fn answer_forwarded(
        &self,
        running: &Running,
        id: i64,
        question: Question,
        deadline: Instant,
    ) -> Response {
        match ask_own(running, id, question, deadline).await {
            Ok(Reply::Lease(time)) => Response::Lease(time),
            Ok(Reply::NotLeader) => Response::NotLeader(running.role.borrow().leader_id),
            Ok(Reply::Rejected(Rejected::Overloaded(why))) => Response::Overloaded(why),
            Ok(Reply::Rejected(Rejected::NotApplied(why))) => Response::NotApplied(why),
            Ok(Reply::Rejected(other)) => Response::Unknown(other.to_string()),
            Err(ForwardError::Busy) => Response::Overloaded("too many requests wait".to_owned()),
            Err(ForwardError::NeverSent(why)) => Response::NotApplied(why),
            Err(ForwardError::Unknown(why)) => Response::Unknown(why),
        }
    }
}

/// Asks this member's keeper.
async fn ask_own(
    running: &Running,
    id: i64,
    question: Question,
    deadline: Instant,
) -> Result<Reply, ForwardError> {
    let (reply, answer) = oneshot::channel();
    match running.leases.try_send(Asking { id, question, reply }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            let why = "too many leases are being renewed; try again later".to_owned();
            return Ok(Reply::Rejected(Rejected::Overloaded(why)));
        }
        Err(TrySendError::Closed(_)) => {
            return Err(ForwardError::NeverSent("this node is stopping; ask another".to_owned()));
        }
    }
    match timeout_at(deadline, answer).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(_)) => Err(ForwardError::Unknown("this node is stopping; ask another".to_owned())),
        Err(_) => {
            let why = "the leader did not hear from a majority of the members in time";
            Err(ForwardError::Unknown(why.to_owned()))
        }
    }
}

impl Parts {
    /// Starts the task that runs the lease keeper; its error stops the node.
    pub(super) fn start_lease_keeper(
        self: &Arc<Self>,
        running: Arc<Running>,
        feed: LeaseFeed,
        questions: tokio::sync::mpsc::Receiver<Asking>,
    ) {
        let options = Options {
            tick: self.config.heartbeat_interval.max(Duration::from_nanos(1)),
            election_ticks: self.config.election_ticks() as u64,
        };
        let handle = self.handle.clone();
        let keeper = Keeper::new(&options);
        let metrics = self.metrics.clone();
        let pump = LeasePump::new(keeper, feed, questions, running, handle.clone(), metrics);
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            if let Some(Err(fatal)) = cancel.run_until_cancelled(pump.run()).await {
                handle.fail(fatal);
            }
        });
    }
}
