//! Requests that only the leader can carry out, and their way to it.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Handle,
    handle::{Phase, Running, not_running},
    soundness::is_served,
};
use crate::{
    error::Rejected,
    lease::Question,
    proto::{
        Command, ForwardRequest, ForwardResponse, RequestId, forward_request, forward_response,
    },
    replica::{Answer, Event},
    transport::ForwardError,
};

/// Pause before a request that found no leader, or could not reach it, is
/// tried again without having heard of a new one.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Who is asked first to carry out a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// This member's replica, which names the leader if it does not lead itself.
    Here,
    /// The leader, if it is known to be another: the replica would say the same,
    /// a turn of its task later.
    WithLeader,
}

impl Handle {
    /// Carries out a request that the member `from` passed on: here or not at
    /// all.
    pub(super) async fn serve_forwarded(
        &self,
        from: u64,
        request: ForwardRequest,
    ) -> ForwardResponse {
        use forward_response::Result as Response;
        let timeout = Duration::from_millis(request.timeout_ms).min(self.shared.request_timeout);
        let deadline = Instant::now() + timeout;
        let running = match &*self.shared.phase.borrow() {
            Phase::Running(running) => Arc::clone(running),
            phase => {
                let why = not_running(phase).to_string();
                return ForwardResponse { result: Some(Response::NotApplied(why)) };
            }
        };
        if is_served(&request) && self.is_accused() {
            // It is about to hand its leadership over.
            return ForwardResponse { result: Some(Response::NotLeader(0)) };
        }
        let answer = match request.request {
            Some(forward_request::Request::Command(command)) => {
                let named = command.id.filter(|id| id.member == from);
                let event = |id| Event::ProposeFor(from, Command { id: Some(id), ..command });
                let (waiters, inbox) = (&running.waiters, &running.inbox);
                match named {
                    Some(id) => waiters.ask_as(id, inbox, deadline, event).await,
                    None => waiters.ask(inbox, deadline, event).await,
                }
            }
            Some(forward_request::Request::TransferLeader(target)) => {
                let event = |id| Event::TransferLeader(id, target);
                running.waiters.ask(&running.inbox, deadline, event).await
            }
            Some(forward_request::Request::KeepAlive(lease)) => {
                let question = Question::KeepAlive;
                let result = self.answer_forwarded(&running, lease, question, deadline).await;
                return ForwardResponse { result: Some(result) };
            }
            Some(forward_request::Request::TimeToLive(lease)) => {
                let question = Question::TimeToLive;
                let result = self.answer_forwarded(&running, lease, question, deadline).await;
                return ForwardResponse { result: Some(result) };
            }
            Some(forward_request::Request::StateReport(report)) => {
                let result = self.take_report(&running, from, report);
                return ForwardResponse { result: Some(result) };
            }
            None => Answer::Rejected(Rejected::NotApplied("an empty request".to_owned())),
        };
        ForwardResponse { result: Some(to_response(answer)) }
    }

    /// Asks this member, or the leader it names, until one of them leads. The
    /// first to be asked is whom the start says.
    ///
    /// A request is sent again only while it provably was not proposed. Once
    /// it has left this node, its failure is never called "not applied".
    pub(super) async fn lead_or_forward(
        &self,
        start: Start,
        deadline: Instant,
        event: impl Fn(RequestId) -> Event,
        forward: impl Fn(RequestId) -> forward_request::Request,
    ) -> Result<Answer, Rejected> {
        let running = self.running(deadline).await?;
        let mut role = running.role.clone();
        let mut left_this_node = false;
        loop {
            let known = role.borrow_and_update().leader_id;
            let leader = if start == Start::WithLeader && known != 0 && known != self.shared.id {
                known
            } else {
                match running.waiters.ask(&running.inbox, deadline, &event).await {
                    Answer::NotLeader(leader) => leader,
                    Answer::Rejected(rejected) => return Err(fate(left_this_node, rejected)),
                    answer => return Ok(answer),
                }
            };
            let mut why = "the cluster has no leader".to_owned();
            if leader != 0 && leader != self.shared.id {
                let mut waiting = running.waiters.passed_on();
                let request = forward(waiting.id);
                let mut forwarded = pin!(self.forward(&running, leader, request, deadline));
                let forwarded = tokio::select! {
                    biased;
                    // What was applied here needs no word of the leader's, unless what
                    // is here must not be told.
                    answer = waiting.answer() => match running.soundness.check() {
                        Ok(()) => return Ok(answer),
                        Err(_) => forwarded.await,
                    },
                    forwarded = forwarded.as_mut() => forwarded,
                };
                match forwarded.map(to_answer) {
                    Ok(Answer::NotLeader(_)) => {
                        left_this_node = true;
                        why = format!("member {leader} does not lead any more");
                    }
                    Ok(Answer::Rejected(rejected)) => return Err(fate(true, rejected)),
                    Ok(answer) => return Ok(answer),
                    Err(ForwardError::Busy) => {
                        why = "too many requests wait for the leader; retry in a moment".to_owned();
                        if !left_this_node {
                            return Err(Rejected::Overloaded(why));
                        }
                    }
                    Err(ForwardError::NeverSent(cause)) => {
                        why = format!("the leader, member {leader}, cannot be reached: {cause}");
                    }
                    Err(ForwardError::Unknown(cause)) => return Err(Rejected::Unknown(cause)),
                }
            }
            let pause = Instant::now() + RETRY_PAUSE;
            if pause >= deadline {
                return Err(fate(left_this_node, Rejected::NotApplied(why)));
            }
            // A change of role is worth asking again at once; what cannot be
            // seen from here (the leader's address, its state) is asked for.
            tokio::select! {
                changed = role.changed() => if changed.is_err() { sleep(RETRY_PAUSE).await },
                () = sleep_until(pause) => {}
            }
        }
    }

    /// Waits until this member has applied an entry that the leader has, so that its
    /// own state shows what it answers with.
    ///
    /// # Errors
    /// [`Rejected::Unknown`] when it has not in time, or stops before. Never that
    /// nothing was applied: it was.
    pub(super) async fn applied_here(&self, index: u64, deadline: Instant) -> Result<(), Rejected> {
        let running = match &*self.shared.phase.borrow() {
            // As always on the leader.
            Phase::Running(running) if running.applied.has(index) => return Ok(()),
            Phase::Running(running) => Some(Arc::clone(running)),
            Phase::Forming(_) | Phase::Stopping => None,
        };
        if let Some(running) = running {
            let mut phase = self.shared.phase.subscribe();
            tokio::select! {
                biased;
                () = running.applied.reaches(index) => return Ok(()),
                _ = phase.wait_for(|phase| !matches!(phase, Phase::Running(_))) => {}
                () = sleep_until(deadline) => {}
            }
        }
        let why = "the leader carried it out, but this member has not applied it in time";
        Err(Rejected::Unknown(why.to_owned()))
    }

    /// Passes a request on to the leader.
    pub(super) async fn forward(
        &self,
        running: &Running,
        leader: u64,
        request: forward_request::Request,
        deadline: Instant,
    ) -> Result<ForwardResponse, ForwardError> {
        let Some(url) = running.directory.peer_url(leader) else {
            return Err(ForwardError::NeverSent("its address is not known yet".to_owned()));
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = ForwardRequest { request: Some(request), timeout_ms };
        // The leader keeps to the deadline; what it says then is worth more
        // than a connection cut at the same moment.
        let patience = timeout + Duration::from_secs(1);
        let client = &self.shared.client;
        let identity = &running.identity;
        client.forward(&url, identity, leader, request, patience).await
    }
}

/// What a failed request may be told: one that left this node may have taken
/// effect as far as anybody here can prove.
fn fate(left_this_node: bool, rejected: Rejected) -> Rejected {
    match rejected {
        Rejected::NotApplied(why) if left_this_node => Rejected::Unknown(why),
        other => other,
    }
}

fn to_response(answer: Answer) -> forward_response::Result {
    use forward_response::Result as Response;
    match answer {
        Answer::Outcome(outcome) => Response::Outcome(outcome),
        Answer::Led => Response::Done(crate::proto::Unit {}),
        Answer::NotLeader(leader) => Response::NotLeader(leader),
        Answer::Readable => Response::Unknown("a read is not forwarded".to_owned()),
        Answer::Rejected(rejected) => match rejected {
            Rejected::NotApplied(why) => Response::NotApplied(why),
            Rejected::Unknown(why) => Response::Unknown(why),
            Rejected::Overloaded(why) => Response::Overloaded(why),
            Rejected::Conflict(why) => Response::Conflict(why),
            Rejected::MemberNotFound(id) => Response::MemberNotFound(id),
            Rejected::Corrupt(_) => Response::NotApplied(rejected.to_string()),
        },
    }
}

fn to_answer(response: ForwardResponse) -> Answer {
    use forward_response::Result as Response;
    Answer::Rejected(match response.result {
        Some(Response::Outcome(outcome)) => return Answer::Outcome(outcome),
        Some(Response::Done(_)) => return Answer::Led,
        Some(Response::NotLeader(leader)) => return Answer::NotLeader(leader),
        Some(Response::NotApplied(why)) => Rejected::NotApplied(why),
        Some(Response::Unknown(why)) => Rejected::Unknown(why),
        Some(Response::Overloaded(why)) => Rejected::Overloaded(why),
        Some(Response::Conflict(why)) => Rejected::Conflict(why),
        Some(Response::MemberNotFound(id)) => Rejected::MemberNotFound(id),
        Some(Response::Lease(_)) | None => {
            Rejected::Unknown("the leader's answer cannot be understood".to_owned())
        }
    })
}
