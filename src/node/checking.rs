//! The consistency check: marks, reports, and what the leader makes of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use raft::StateRole;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Parts,
    check_thread::Marked,
    handle::{Handle, Running},
};
use crate::{
    check::{Comparison, Hash, Report, Verdict},
    machine,
    proto::{
        CheckState, SetAlarm, StateReport, Unit, command::Op, etcdserverpb::AlarmType,
        forward_request::Request, forward_response::Result as Response,
    },
    replica::Role,
};

/// How often a report is brought to the leader at most, and the longest pause
/// in between. Together longer than several elections.
const DELIVERIES: usize = 10;
const DELIVERY_PAUSE: Duration = Duration::from_secs(1);

/// Reports that may wait for the leader's comparison. It takes them at once,
/// unless it raises an alarm meanwhile; who is refused tries again.
pub(super) const MAX_WAITING_REPORTS: usize = 64;

/// What the tasks of the check read.
pub(super) struct Checking {
    /// The newest mark applied here.
    pub applied: watch::Receiver<Option<Marked>>,
    /// What this member's state came to at the newest mark it hashed.
    pub own: watch::Receiver<Option<Report>>,
    /// What all members report to this one.
    pub reports: mpsc::Receiver<Report>,
    /// Whether this member is hashing.
    pub busy: Arc<AtomicBool>,
}

impl Parts {
    /// Starts the tasks of the check.
    pub(super) fn start_checking(self: &Arc<Self>, running: Arc<Running>, checking: Checking) {
        let parts = Arc::clone(self);
        tokio::spawn(async move {
            let Checking { applied, own, reports, busy } = checking;
            let checked = async {
                tokio::join!(
                    parts.propose_marks(&running, applied.clone(), &busy),
                    parts.deliver_reports(&running, own),
                    parts.compare(&running, applied, reports)
                )
            };
            parts.cancel.run_until_cancelled(checked).await;
        });
    }

    /// Proposes a mark while this member leads, whenever none was applied for an
    /// interval, whoever proposed it.
    async fn propose_marks(
        &self,
        running: &Running,
        mut applied: watch::Receiver<Option<Marked>>,
        busy: &AtomicBool,
    ) {
        let interval = self.config.corruption_check_interval;
        if interval.is_zero() {
            return;
        }
        loop {
            match timeout(interval, applied.changed()).await {
                Ok(Ok(())) => continue,
                // The apply thread is gone.
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            if reign(&running.role).is_none() || busy.load(Ordering::Acquire) {
                continue;
            }
            if let Err(why) = self.handle.submit(Op::CheckState(CheckState {})).await {
                slog::warn!(self.logger, "the members' states are not compared this time: {why}");
            }
        }
    }

    /// Brings this member's reports to whoever leads.
    async fn deliver_reports(&self, running: &Running, mut own: watch::Receiver<Option<Report>>) {
        while own.changed().await.is_ok() {
            let Some(report) = *own.borrow_and_update() else { continue };
            let mut role = running.role.clone();
            let mut why = String::new();
            for _ in 0..DELIVERIES {
                role.mark_unchanged();
                let leader = role.borrow().leader_id;
                match self.handle.deliver_report(running, leader, report).await {
                    Ok(()) => {
                        why.clear();
                        break;
                    }
                    Err(cause) => why = cause,
                }
                // Newer ones count more.
                if own.has_changed().unwrap_or(true) {
                    break;
                }
                let _no_change = timeout(DELIVERY_PAUSE, role.changed()).await;
            }
            if !why.is_empty() {
                slog::warn!(
                    self.logger,
                    "the leader was not told what the state at index {} came to: {why}",
                    report.position.index
                );
            }
        }
    }

    /// Compares what is reported while this member leads.
    async fn compare(
        &self,
        running: &Running,
        mut applied: watch::Receiver<Option<Marked>>,
        mut reports: mpsc::Receiver<Report>,
    ) {
        let mut comparison = Comparison::default();
        let mut compared_in = None;
        loop {
            let (mut marked, mut reported) = (None, None);
            tokio::select! {
                changed = applied.changed() => match changed {
                    Ok(()) => marked.clone_from(&*applied.borrow_and_update()),
                    Err(_) => return,
                },
                report = reports.recv() => match report {
                    Some(report) => reported = Some(report),
                    None => return,
                },
            }
            // Asked for only now: a leader knows that it leads before it applies
            // a mark of its term.
            let reign = reign(&running.role);
            if reign != compared_in {
                comparison = Comparison::default();
                compared_in = reign;
            }
            if reign.is_none() {
                continue;
            }
            let begun =
                marked.map(|Marked { position, members }| comparison.begin(position, &members));
            let added = reported.map(|report| comparison.report(report));
            for verdict in begun.into_iter().chain(added).flatten() {
                self.carry_out(verdict).await;
            }
        }
    }

    async fn carry_out(&self, verdict: Verdict) {
        match verdict {
            Verdict::Agreed(index) => {
                self.metrics.checks_done.inc();
                slog::info!(self.logger, "a majority has the same state at index {index}");
            }
            Verdict::Undecided(index) => {
                self.metrics.checks_undecided.inc();
                slog::warn!(
                    self.logger,
                    "no majority is known to have the same state at index {index}, so that nobody \
                     can tell who is right; see that all members run, and compare /-/hash if this \
                     goes on"
                );
            }
            Verdict::Accused(member) => self.accuse(member).await,
        }
    }

    /// Raises the alarm that keeps a member from serving.
    async fn accuse(&self, member: u64) {
        if machine::is_accused(&self.handle.alarms(), member) {
            return;
        }
        slog::error!(
            self.logger,
            "the state of member {member} is not that of the others: raising the CORRUPT alarm, \
             so that it serves nothing; remove it, and add one under a new id with an empty \
             directory, then disarm the alarm"
        );
        let alarm = AlarmType::Corrupt.into();
        let op = Op::SetAlarm(SetAlarm { member, alarm, active: true });
        if let Err(why) = self.handle.submit(op).await {
            // Its next report is another, too.
            slog::error!(
                self.logger,
                "cannot raise the CORRUPT alarm for member {member} yet: {why}"
            );
        }
    }
}

impl Handle {
    /// Brings a report of this member to the leader, which may be this one.
    async fn deliver_report(
        &self,
        running: &Running,
        leader: u64,
        report: Report,
    ) -> Result<(), String> {
        if leader == 0 {
            return Err("the cluster has no leader".to_owned());
        }
        if leader == self.shared.id {
            return running.reports.try_send(report).map_err(|refused| refused.to_string());
        }
        let Report { member, position, hash } = report;
        let hash = bytes::Bytes::copy_from_slice(&hash);
        let report = StateReport { member, position: Some(position), hash };
        let request = Request::StateReport(report);
        let answer = self.forward(running, leader, request, self.deadline()).await;
        match answer.map(|answer| answer.result) {
            Ok(Some(Response::Done(_))) => Ok(()),
            Ok(Some(Response::NotLeader(_))) => {
                Err(format!("member {leader} does not lead any more"))
            }
            Ok(other) => Err(format!("member {leader} answered {other:?}")),
            Err(error) => Err(format!("member {leader} cannot be reached: {error:?}")),
        }
    }

    /// Takes in what the member `from` reports, if this one leads.
    pub(super) fn take_report(
        &self,
        running: &Running,
        from: u64,
        report: StateReport,
    ) -> Response {
        let role = *running.role.borrow();
        if role.leader_id != self.shared.id {
            return Response::NotLeader(role.leader_id);
        }
        let StateReport { member, position: Some(position), hash } = report else {
            return Response::Conflict("a report says which mark it is about".to_owned());
        };
        if member != from {
            return Response::Conflict(format!("member {from} reports for member {member}"));
        }
        let Ok(hash) = Hash::try_from(hash.as_ref()) else {
            return Response::Conflict(format!("a hash of {} bytes is none", hash.len()));
        };
        match running.reports.try_send(Report { member, position, hash }) {
            Ok(()) => Response::Done(Unit {}),
            Err(refused) => Response::Overloaded(refused.to_string()),
        }
    }
}

/// The term in which this member leads, if it does.
fn reign(role: &watch::Receiver<Role>) -> Option<u64> {
    let role = *role.borrow();
    (role.role == StateRole::Leader).then_some(role.term)
}
