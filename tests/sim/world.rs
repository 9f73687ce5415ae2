//! A whole cluster, its clients and its misfortunes, in one loop.

use std::collections::{BTreeMap, BTreeSet};

use metastore::{
    machine,
    proto::{Founder, FoundingRecord, LogPosition},
    replica::Event,
};

use super::{
    client::{self, Client, Numbers},
    etcd::EtcdClient,
    history::{Ask, End},
    nemesis::Changes,
    node::{Node, incarnation},
    plan::{CONVERGENCE, ELECTION, MS, RECOVERY, SECOND, Time},
    requests::Ticket,
    sim::{Action, Sim, Step, Tally, TraceTail, Transfer},
    watchers::Watcher,
};

/// How long clients go on after the cluster has recovered.
const AFTERMATH: Time = 2 * SECOND;

/// By then every request has met its deadline, and been answered.
const LONGEST_REQUEST: Time = 6 * SECOND;

pub struct World {
    pub sim: Sim,
    pub nodes: BTreeMap<u64, Node>,
    pub changes: Changes,
    pub cluster_id: u64,
    pub removed_ids: BTreeSet<u64>,
    pub chaos_is_over: bool,
    clients: Vec<Client>,
    pub clients_stopped: bool,
    pub etcd_clients: Vec<EtcdClient>,
    /// The store's newest revision that any of them was told.
    pub newest_told: u64,
    pub watchers: Vec<Watcher>,
    /// Those who watch take everything at once.
    pub watchers_hurry: bool,
    numbers: Numbers,
    /// The final reads under way.
    last_reads: BTreeSet<usize>,
    /// When all faults had ended.
    healed_at: Option<Time>,
    /// When a write of after that was acknowledged.
    recovered_at: Option<Time>,
    /// Writes called after all faults had ended.
    probes: BTreeSet<usize>,
}

/// What a finished run is worth.
pub struct Report {
    pub trace_hash: u64,
    pub tally: Tally,
}

impl World {
    pub fn new(seed: u64, tail: Option<TraceTail>) -> Self {
        let mut sim = Sim::new(seed, tail);
        let founders = sim.plan.founders;
        let founder =
            |id| Founder { id, peer_url: format!("http://m{id}"), incarnation: incarnation(id) };
        let record = FoundingRecord { founders: (1..=founders).map(founder).collect() };
        let mut nodes = BTreeMap::new();
        for id in 1..=founders {
            let mut node = Node::found(&mut sim, id, &record);
            node.start(&mut sim);
            nodes.insert(id, node);
        }
        let clients: Vec<Client> = (0..sim.plan.clients).map(|_| Client::default()).collect();
        for client in 0..clients.len() {
            sim.schedule(SECOND + client as Time, Action::Client(client));
        }
        sim.schedule(2 * SECOND, Action::Fault);
        sim.schedule(2 * ELECTION, Action::AskAround);
        sim.schedule(SECOND, Action::Mark);
        Self {
            changes: Changes::new(founders),
            cluster_id: machine::cluster_id(&record),
            removed_ids: BTreeSet::new(),
            chaos_is_over: false,
            clients,
            clients_stopped: false,
            etcd_clients: (0..sim.plan.etcd_clients).map(|_| EtcdClient::default()).collect(),
            newest_told: 0,
            watchers: (0..sim.plan.watchers).map(|_| Watcher::default()).collect(),
            watchers_hurry: false,
            numbers: Numbers::default(),
            last_reads: BTreeSet::new(),
            healed_at: None,
            recovered_at: None,
            probes: BTreeSet::new(),
            sim,
            nodes,
        }
    }

    /// Lives through faults, then recovery, then the last checks. Panics when
    /// anything is not as it must be.
    pub fn run(mut self) -> Report {
        self.plan_etcd_clients();
        self.plan_watchers();
        let chaos = self.sim.plan.chaos;
        self.run_until(chaos, |_| false);
        self.end_chaos();
        let healed_at = self.healed_at.expect("set by end_chaos");
        self.run_until(healed_at + RECOVERY, |world| world.recovered_at.is_some());
        let recovered_at = self.recovered_at.unwrap_or_else(|| {
            panic!("no write committed within 10 election timeouts: {}", self.tell())
        });
        self.sim.tally.add("recovery ms", recovered_at.saturating_sub(healed_at) / MS);
        self.run_until(recovered_at + AFTERMATH, |_| false);
        self.clients_stopped = true;
        self.leases_run_out();
        let deadline = self.sim.now + CONVERGENCE;
        self.run_until(deadline, Self::has_converged);
        assert!(self.has_converged(), "the members did not become equal: {}", self.tell());
        for node in self.nodes.values() {
            node.check_state(&mut self.sim);
        }
        self.settle_watches();
        self.read_everything_everywhere();
        // Those who asked may have given up before those who were asked.
        let deadline = self.sim.now + LONGEST_REQUEST;
        self.run_until(deadline, |world| world.nodes.values().all(Node::is_idle));
        self.check_members();
        self.report()
    }

    pub fn run_until(&mut self, deadline: Time, done: impl Fn(&Self) -> bool) {
        while self.sim.now < deadline && !done(self) {
            let action = self.sim.next().expect("ticks never end");
            self.act(action);
            self.tell_the_ended();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Process { node, epoch, step } => {
                let (sim, node) = self.with(node);
                if node.epoch == epoch {
                    let id = node.id;
                    match sim.now < node.paused_until {
                        true => sim.step(id, epoch, node.paused_until - sim.now, step),
                        false => node.step(sim, step),
                    }
                }
            }
            Action::Deliver { from, to, message } => self.deliver(from, to, message),
            Action::Transfer(transfer) => self.end_transfer(transfer),
            Action::Forwarded { to, arrived } => {
                let Some(node) = self.nodes.get_mut(&to) else { return };
                if self.sim.net.is_open(arrived.from, to)
                    && let Some(process) = &mut node.process
                {
                    let event = process.requests.arrive(&mut self.sim, *arrived);
                    node.inject(&mut self.sim, event);
                }
            }
            Action::ToldRemoved(id) => {
                let (sim, node) = self.with(id);
                node.remove(sim);
            }
            Action::AskAround => self.ask_around(),
            Action::Client(client) => self.client_asks(client),
            Action::Fault => self.fault(),
            Action::Heal(generation) => {
                if generation == self.sim.net.generation {
                    self.sim.note("heal", 0, &[generation], String::new);
                    self.sim.net.heal();
                }
            }
            Action::Restart(id) => {
                let (sim, node) = self.with(id);
                if node.process.is_none() && !node.removed {
                    node.start(sim);
                    self.roll_call(id);
                }
            }
            Action::Membership => self.membership_step(),
            Action::EtcdClient(client) => self.etcd_client_asks(client),
            Action::AskLease { to, lease, question } => self.lease_asked(to, lease, question),
            Action::Watcher(watcher) => self.watcher_acts(watcher),
            Action::Mark => self.propose_mark(),
        }
    }

    pub fn with(&mut self, id: u64) -> (&mut Sim, &mut Node) {
        let node = self.nodes.get_mut(&id).expect("ids of nodes name nodes");
        (&mut self.sim, node)
    }

    pub fn running(&self) -> Vec<u64> {
        let running = self.nodes.values().filter(|node| node.process.is_some());
        running.map(|node| node.id).collect()
    }

    /// The leader of the newest term, if one is running.
    pub fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.values().filter(|node| node.leads());
        leaders.max_by_key(|node| node.status().map(|status| status.role.term)).map(|node| node.id)
    }

    fn deliver(&mut self, from: u64, to: u64, message: Box<raft::eraftpb::Message>) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let Some(members) = node.members() else { return };
        if !self.sim.net.is_open(from, to) {
            return;
        }
        if self.sim.now < node.paused_until {
            let wait = node.paused_until - self.sim.now;
            return self.sim.schedule(wait, Action::Deliver { from, to, message });
        }
        if members.removed_ids.contains(&from) {
            return self.sim.schedule(5 * MS, Action::ToldRemoved(from));
        }
        if self.lets_in(&message)
            && let Some(node) = self.nodes.get_mut(&to)
        {
            node.inject(&mut self.sim, Event::Message(message));
        }
    }

    /// Whoever has no leader asks the others whether it still belongs to them.
    fn ask_around(&mut self) {
        self.sim.schedule(2 * ELECTION, Action::AskAround);
        let awake = |node: &&Node| node.process.is_some() && node.paused_until <= self.sim.now;
        let mut removed = Vec::new();
        for node in self.nodes.values().filter(awake) {
            let id = node.id;
            let leaderless = node.status().is_some_and(|status| status.role.leader_id == 0);
            let is_told = self.nodes.values().filter(awake).any(|other| {
                let open = self.sim.net.is_open(id, other.id) && self.sim.net.is_open(other.id, id);
                let members = other.members();
                open && members.is_some_and(|members| members.removed_ids.contains(&id))
            });
            if leaderless && is_told {
                removed.push(id);
            }
        }
        for id in removed {
            self.sim.schedule(5 * MS, Action::ToldRemoved(id));
        }
    }

    fn end_transfer(&mut self, transfer: Box<Transfer>) {
        let Transfer { from, from_epoch, to, doomed, .. } = *transfer;
        let metadata = transfer.message.get_snapshot().get_metadata();
        let position = LogPosition { index: metadata.index, term: metadata.term };
        let open = self.sim.net.is_open(from, to) && self.sim.net.is_open(to, from);
        let receiver = self.nodes.get_mut(&to).filter(|node| node.process.is_some());
        let mut success = false;
        if let Some(node) = receiver
            && open
            && !doomed
        {
            if self.sim.now < node.paused_until {
                let wait = node.paused_until - self.sim.now;
                return self.sim.schedule(wait, Action::Transfer(transfer));
            }
            node.receive_snapshot(&mut self.sim, &transfer);
            // The confirmation may be lost although the snapshot was not.
            success = self.sim.net.calm || !self.sim.dice.permille(100);
        }
        let outcome = if success { "transfers confirmed" } else { "transfers failed" };
        self.sim.tally.add(outcome, 1);
        let event = Box::new(Event::SnapshotSent { to, position, success });
        let delay = self.sim.dice.between(MS, 50 * MS);
        self.sim.step(from, from_epoch, delay, Step::Inject(event));
    }

    fn client_asks(&mut self, client: usize) {
        let think = self.sim.dice.between(MS, self.sim.plan.think);
        if self.clients_stopped {
            return;
        }
        let running = self.running();
        let Some(id) = self.sim.dice.pick_any(&running) else {
            return self.sim.schedule(think, Action::Client(client));
        };
        let Sim { plan, dice, .. } = &mut self.sim;
        let (key, ask) = self.clients[client].ask(plan, dice, &mut self.numbers);
        let timeout = client::patience(dice);
        let ticket = self.ask(id, key, ask, timeout);
        self.clients[client].ticket = Some(ticket);
    }

    fn ask(&mut self, id: u64, key: u64, ask: Ask, timeout: Time) -> usize {
        let work = client::work(&self.sim.plan, key, &ask);
        let is_write = ask != Ask::Get;
        let ticket = self.sim.history.call(key, ask);
        self.sim.note("ask", id, &[ticket as u64, key], || format!("{work:?}"));
        if is_write && self.healed_at.is_some_and(|at| self.sim.now >= at) {
            self.probes.insert(ticket);
        }
        let (sim, node) = self.with(id);
        node.submit(sim, Ticket::Kv(ticket), work, timeout);
        ticket
    }

    fn tell_the_ended(&mut self) {
        while let Some(ticket) = self.sim.ended.pop() {
            match ticket {
                Ticket::Admin(ticket) => self.admin_ended(ticket),
                Ticket::Kv(ticket) => self.kv_ended(ticket),
                Ticket::Etcd(client) => self.etcd_ended(client),
                Ticket::Keeper | Ticket::Mark => {}
            }
        }
    }

    fn kv_ended(&mut self, ticket: usize) {
        let record = self.sim.history.records[ticket].clone();
        let is_done = matches!(record.returned, Some((_, End::Done(_))));
        if is_done && self.probes.contains(&ticket) && self.recovered_at.is_none() {
            self.recovered_at = Some(self.sim.now);
        }
        if self.last_reads.remove(&ticket) {
            assert!(is_done, "a read failed on a healthy cluster: {record:?}");
        }
        let asker = self.clients.iter().position(|client| client.ticket == Some(ticket));
        if let Some(client) = asker {
            self.clients[client].learn(&record);
            self.clients[client].ticket = None;
            let think = self.sim.dice.between(MS, self.sim.plan.think);
            self.sim.schedule(think, Action::Client(client));
        }
    }

    /// No more faults; those under way end. What they left behind is the
    /// cluster's to repair.
    fn end_chaos(&mut self) {
        self.chaos_is_over = true;
        self.sim.net.heal();
        self.sim.net.generation += 1;
        self.sim.net.calm = true;
        self.sim.note("end of chaos", 0, &[], String::new);
        let mut healed_at = self.sim.now;
        for node in self.nodes.values_mut() {
            if node.process.is_none() && !node.removed {
                node.start(&mut self.sim);
            }
            node.disk.mend();
            let Node { paused_until, slow_disk_until, slow_apply_until, .. } = *node;
            let ends = [paused_until, slow_disk_until, slow_apply_until, node.clock_stands_until];
            healed_at = ends.into_iter().fold(healed_at, Time::max);
        }
        self.healed_at = Some(healed_at);
    }

    /// All members stand at the same position, and all changes are through.
    fn has_converged(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(members) = self.nodes[&leader].members() else { return false };
        let learners = members.members.iter().filter(|member| member.learner);
        let ids: BTreeSet<u64> = members.members.iter().map(|member| member.id).collect();
        let newest = self.nodes[&leader].status().map_or(0, |status| status.last_index);
        self.changes.is_idle()
            && ids == self.changes.members
            && learners.map(|member| member.id).eq(self.changes.standing_learners.iter().copied())
            && self.clients.iter().all(|client| client.ticket.is_none())
            && !self.etcd_clients_wait()
            && ids.iter().all(|id| {
                self.nodes[id].status().is_some_and(|status| status.applied_index == newest)
            })
            && self.removed_ids.iter().all(|id| {
                self.nodes.get(id).is_none_or(|node| node.removed || node.process.is_some())
            })
    }

    /// Every acknowledged write must be there, on every voter.
    fn read_everything_everywhere(&mut self) {
        let voters = self.changes.members.difference(&self.changes.standing_learners);
        let voters: Vec<u64> = voters.copied().collect();
        for id in voters {
            for key in 1..=self.sim.plan.keys {
                let ticket = self.ask(id, key, Ask::Get, 5 * SECOND);
                self.last_reads.insert(ticket);
            }
        }
        let deadline = self.sim.now + 10 * SECOND;
        self.run_until(deadline, |world| world.last_reads.is_empty());
        assert!(self.last_reads.is_empty(), "reads were not answered: {:?}", self.last_reads);
    }

    fn check_members(&self) {
        for id in &self.changes.members {
            let process = self.nodes[id].process.as_ref().expect("members run when all is healed");
            process.requests.assert_idle();
        }
    }

    fn report(mut self) -> Report {
        let explained = self.sim.history.check();
        let Sim { tally, checks, now, oracle, net, .. } = &mut self.sim;
        std::mem::take(&mut oracle.tally.0).into_iter().for_each(|(what, n)| tally.add(what, n));
        std::mem::take(&mut net.tally.0).into_iter().for_each(|(what, n)| tally.add(what, n));
        tally.add("runs", 1);
        tally.add("virtual seconds", *now / SECOND);
        tally.add("operations explained", explained);
        tally.add("terms with a leader", checks.terms_with_leader());
        tally.add("comparisons", checks.compared);
        tally.add("state hashes compared", checks.hashes_compared);
        tally.add("states at marks compared", checks.marks_compared);
        Report { trace_hash: self.sim.trace_hash(), tally: self.sim.tally }
    }

    /// The state of everything, for people.
    fn tell(&self) -> String {
        let nodes = self.nodes.values().map(|node| {
            let members = node.members();
            let ids = members.iter().flat_map(|members| &members.members);
            let ids: Vec<_> = ids.map(|member| (member.id, member.learner)).collect();
            format!("\n  node {}, removed {}: {:?} {ids:?}", node.id, node.removed, node.status())
        });
        format!("{}\n  {}", nodes.collect::<String>(), self.changes.tell())
    }
}
