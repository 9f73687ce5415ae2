//! How the founders of a cluster agree, before the first vote, on who they are.
//!
//! Every founder has drawn an incarnation and stored it. Once a founder has
//! heard the incarnations of all others, it *prepares* the one record that
//! follows from them: it stores it and never agrees to another. Once it has
//! heard that every other founder prepared the same record, or belongs to the
//! cluster of that record, it belongs to that cluster itself. So no two
//! clusters can come out of one list of founders, whoever loses its data or
//! its messages on the way: a founder whose data was wiped has another
//! incarnation, which no prepared record names.

use std::collections::BTreeMap;

use crate::{
    config::ClusterEntry,
    error::Fatal,
    machine,
    proto::{Founder, FoundingHello, FoundingRecord},
};

/// What a founder knows of the others.
#[derive(Debug)]
pub(super) struct Founding {
    id: u64,
    incarnation: u64,
    founders: Vec<ClusterEntry>,
    prepared: Option<FoundingRecord>,
    heard: BTreeMap<u64, FoundingHello>,
}

/// What a founder should do next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Go on asking; the text says for whom or what it waits.
    Wait(String),
    /// Store this record, then go on.
    Prepare(FoundingRecord),
    /// Belong to the cluster of this record.
    Found(FoundingRecord),
}

impl Founding {
    pub fn new(
        id: u64,
        incarnation: u64,
        founders: Vec<ClusterEntry>,
        prepared: Option<FoundingRecord>,
    ) -> Self {
        Self { id, incarnation, founders, prepared, heard: BTreeMap::new() }
    }

    /// The founders still to be asked: all others, by their URLs.
    pub fn others(&self) -> impl Iterator<Item = &ClusterEntry> {
        self.founders.iter().filter(|entry| entry.id != self.id)
    }

    /// The record is stored.
    pub fn prepared(&mut self, record: FoundingRecord) {
        self.prepared = Some(record);
    }

    /// Takes in what the founder listed as `id` says of itself.
    ///
    /// # Errors
    /// When it shows that this member's data is gone.
    pub fn hear(&mut self, id: u64, hello: FoundingHello) -> Result<(), Fatal> {
        if let Some(members) = &hello.members {
            check_not_bound(self.id, self.incarnation, members)?;
        }
        if let Some(record) = &hello.prepared {
            let own = record.founders.iter().find(|founder| founder.id == self.id);
            if own.is_some_and(|founder| founder.incarnation != self.incarnation) {
                return Err(Fatal::new(
                    format!("the other founders know member {} with other data", self.id),
                    "its data directory is gone; restore it, or, if the cluster never formed, \
                     empty the data directories of all founders and start them again",
                ));
            }
        }
        self.heard.insert(id, hello);
        Ok(())
    }

    /// What follows from what was heard so far.
    pub fn step(&self) -> Step {
        match &self.prepared {
            None => self.prepare(),
            Some(record) => self.found(record),
        }
    }

    fn prepare(&self) -> Step {
        let mut founders = Vec::new();
        let mut missing = Vec::new();
        for entry in &self.founders {
            let incarnation = if entry.id == self.id {
                Some(self.incarnation)
            } else {
                self.heard.get(&entry.id).map(|hello| hello.incarnation)
            };
            match incarnation {
                Some(incarnation) if incarnation != 0 => founders.push(Founder {
                    id: entry.id,
                    peer_url: entry.url.clone(),
                    incarnation,
                }),
                _ => missing.push(format!("member {} at {}", entry.id, entry.url)),
            }
        }
        if !missing.is_empty() {
            return Step::Wait(format!(
                "the cluster is forming: waiting for {}",
                missing.join(", ")
            ));
        }
        let record = FoundingRecord { founders };
        match self.heard.values().find_map(|hello| self.objection(hello, &record)) {
            Some(why) => Step::Wait(why),
            None => Step::Prepare(record),
        }
    }

    fn found(&self, record: &FoundingRecord) -> Step {
        let agrees = |hello: &FoundingHello| {
            hello.prepared.as_ref() == Some(record)
                || hello.cluster_id == machine::cluster_id(record)
        };
        let mut waiting = Vec::new();
        for founder in record.founders.iter().filter(|founder| founder.id != self.id) {
            match self.heard.get(&founder.id) {
                Some(hello) if agrees(hello) => {}
                Some(hello) => match self.objection(hello, record) {
                    Some(why) => return Step::Wait(why),
                    None => waiting.push(format!("member {} to agree", founder.id)),
                },
                None => waiting.push(format!("member {} at {}", founder.id, founder.peer_url)),
            }
        }
        if waiting.is_empty() {
            Step::Found(record.clone())
        } else {
            Step::Wait(format!("the cluster is forming: waiting for {}", waiting.join(", ")))
        }
    }

    /// Why what a founder says cannot go together with this record.
    fn objection(&self, hello: &FoundingHello, record: &FoundingRecord) -> Option<String> {
        let id = hello.member_id;
        if hello.cluster_id != 0 && hello.cluster_id != machine::cluster_id(record) {
            return Some(format!(
                "member {id} belongs to cluster {}, which does not have this member: add this \
                 member there and start it with --join, or correct --cluster",
                hello.cluster_id
            ));
        }
        if hello.prepared.as_ref().is_some_and(|theirs| theirs != record) {
            return Some(format!(
                "member {id} agreed to other founders: start all founders with the same --cluster"
            ));
        }
        None
    }
}

/// Whether a cluster knows this id with other data.
///
/// # Errors
/// When it does.
pub(super) fn check_not_bound(
    id: u64,
    incarnation: u64,
    members: &crate::proto::Members,
) -> Result<(), Fatal> {
    let bound = machine::member(members, id).map_or(0, |member| member.incarnation);
    if bound != 0 && bound != incarnation {
        return Err(bound_elsewhere(id));
    }
    if members.removed_ids.contains(&id) {
        return Err(removed_before(id));
    }
    Ok(())
}

/// This node has no data, but its id had.
pub(super) fn bound_elsewhere(id: u64) -> Fatal {
    Fatal::new(
        format!("member {id} already took part in the cluster with data that is not here"),
        format!(
            "its data is gone: remove member {id} and add it again under a new id, then start it \
             with that --id and --join"
        ),
    )
}

/// This node has no data, and its id is used up.
pub(super) fn removed_before(id: u64) -> Fatal {
    Fatal::new(
        format!("member {id} was removed from the cluster, and ids are never reused"),
        "add this node under a new id and start it with that --id and --join",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founders() -> Vec<ClusterEntry> {
        (1..=3).map(|id| ClusterEntry { id, url: format!("http://127.0.0.1:{id}") }).collect()
    }

    fn founding(id: u64) -> Founding {
        Founding::new(id, 10 * id, founders(), None)
    }

    fn hello(of: &Founding) -> FoundingHello {
        FoundingHello {
            member_id: of.id,
            incarnation: of.incarnation,
            prepared: of.prepared.clone(),
            ..FoundingHello::default()
        }
    }

    fn exchange(all: &mut [Founding]) {
        let hellos: Vec<_> = all.iter().map(hello).collect();
        for founding in all {
            let own = founding.id;
            for hello in hellos.iter().filter(|hello| hello.member_id != own) {
                founding.hear(hello.member_id, hello.clone()).unwrap();
            }
        }
    }

    fn prepare(founding: &mut Founding) -> FoundingRecord {
        let Step::Prepare(record) = founding.step() else { panic!("{:?}", founding.step()) };
        founding.prepared(record.clone());
        record
    }

    #[test]
    fn founders_that_hear_of_each_other_found_the_same_cluster() {
        let mut all = [founding(1), founding(2), founding(3)];
        assert!(matches!(all[0].step(), Step::Wait(why) if why.contains("member 2 at")));
        exchange(&mut all);
        let records: Vec<_> = all.iter_mut().map(prepare).collect();
        assert!(records.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(matches!(all[0].step(), Step::Wait(why) if why.contains("member 2 to agree")));
        exchange(&mut all);
        for founding in &all {
            assert_eq!(founding.step(), Step::Found(records[0].clone()));
        }
    }

    #[test]
    fn a_founder_of_one_forms_at_once() {
        let mut only = Founding::new(1, 10, founders()[..1].to_vec(), None);
        let record = prepare(&mut only);
        assert_eq!(only.step(), Step::Found(record));
    }

    #[test]
    fn one_that_prepared_never_agrees_to_a_wiped_founders_new_incarnation() {
        let mut all = [founding(1), founding(2), founding(3)];
        exchange(&mut all);
        prepare(&mut all[1]);
        let mut wiped = Founding::new(1, 99, founders(), None);
        let refused = wiped.hear(2, hello(&all[1])).unwrap_err();
        assert!(refused.to_string().contains("data directory is gone"), "{refused}");
        all[1].hear(1, hello(&wiped)).unwrap();
        assert!(matches!(all[1].step(), Step::Wait(_)));
    }

    #[test]
    fn a_late_founder_follows_one_that_already_founded() {
        let mut all = [founding(1), founding(2), founding(3)];
        exchange(&mut all);
        let record = prepare(&mut all[0]);
        for other in 1..=2 {
            let done =
                FoundingHello { cluster_id: machine::cluster_id(&record), ..hello(&all[other]) };
            all[0].hear(done.member_id, done).unwrap();
        }
        assert_eq!(all[0].step(), Step::Found(record));
    }

    #[test]
    fn founders_of_different_lists_never_agree() {
        let mut one = founding(1);
        let mut other = Founding::new(2, 20, founders()[..2].to_vec(), None);
        one.hear(2, hello(&other)).unwrap();
        one.hear(3, hello(&founding(3))).unwrap();
        prepare(&mut one);
        other.hear(1, hello(&one)).unwrap();
        assert!(matches!(other.step(), Step::Wait(why) if why.contains("same --cluster")));
    }

    #[test]
    fn a_wiped_member_of_a_cluster_is_told_that_its_data_is_gone() {
        let mut wiped = Founding::new(1, 99, founders(), None);
        let record = FoundingRecord {
            founders: founders()
                .into_iter()
                .map(|entry| Founder {
                    id: entry.id,
                    peer_url: entry.url,
                    incarnation: 10 * entry.id,
                })
                .collect(),
        };
        let hello = FoundingHello {
            member_id: 2,
            incarnation: 20,
            cluster_id: machine::cluster_id(&record),
            members: Some(machine::founding_members(&record)),
            ..FoundingHello::default()
        };
        let refused = wiped.hear(2, hello).unwrap_err();
        assert!(refused.to_string().contains("under a new id"), "{refused}");
    }
}
