//! Who the peers are, as far as this member knows.
//!
//! The applied state says it, but it may lag behind: the member that leads now
//! may have been added, or may have moved, after the last entry this one has
//! applied, and without an answer from here it can never send the rest. So
//! what known peers say is believed beside the applied state, and never
//! against it.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    proto::{Identity, Member, Members},
    raftlog::{Promises, Witnessed},
};

/// Members beyond the applied state that are remembered at most; more than a
/// cluster can have, so that it only stops a peer gone mad.
const MAX_VOUCHED: usize = 1024;

/// Whether a sender is who it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A member, with the incarnation bound to it or none bound yet.
    Known,
    /// No such member, as far as is known here.
    Unknown,
    /// It was removed.
    Removed,
    /// The id belongs to another incarnation.
    WrongIncarnation,
}

/// The present members. Clones share it.
#[derive(Debug, Clone)]
pub struct Directory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    // A lock because the apply thread and connection tasks change it; held for
    // as long as it takes to build the merged members, never over any wait.
    sources: Mutex<Sources>,
    merged: watch::Sender<Arc<Members>>,
    // A lock because the raft task sets it and connection tasks compare with
    // it; held for a comparison.
    word: Mutex<(Promises, Arc<Witnessed>)>,
}

#[derive(Debug)]
struct Sources {
    applied: Arc<Members>,
    /// What peers say: members the applied state lacks, and other URLs of
    /// members it has.
    vouched: BTreeMap<u64, Member>,
}

impl Directory {
    /// A directory for the member `identity`, with the members as applied.
    pub fn new(identity: Identity, applied: Arc<Members>) -> Self {
        let (merged, _) = watch::channel(Arc::clone(&applied));
        let sources = Mutex::new(Sources { applied, vouched: BTreeMap::new() });
        let word = Mutex::default();
        Self { shared: Arc::new(Shared { identity, sources, merged, word }) }
    }

    /// Who this member is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Takes over what this member has on disk and what the others are known to
    /// have had. Before a message leaves that rests on the first.
    pub fn witness(&self, own: Promises, others: Arc<Witnessed>) {
        *self.shared.word.lock() = (own, others);
    }

    /// What this member has on disk.
    pub fn promises(&self) -> Promises {
        self.shared.word.lock().0
    }

    /// What the member `from` is known to have had on disk, if what it has now
    /// is an older copy of that.
    pub fn outdated(&self, from: u64, present: &Promises) -> Option<Promises> {
        let word = self.shared.word.lock();
        word.1.of(from).filter(|known| present.are_behind(known)).copied()
    }

    /// The members as applied here.
    pub fn applied(&self) -> Arc<Members> {
        Arc::clone(&self.shared.sources.lock().applied)
    }

    /// Takes over the members after a change was applied. One that moved may
    /// still listen where it was, and hear only there that it was moved.
    pub fn set(&self, applied: Arc<Members>) {
        let mut sources = self.shared.sources.lock();
        let previous = std::mem::replace(&mut sources.applied, Arc::clone(&applied));
        for member in &previous.members {
            let moved = find(&applied, member.id).is_some_and(|m| m.peer_url != member.peer_url);
            if moved && !sources.vouched.contains_key(&member.id) {
                sources.remember(member.clone());
            }
        }
        sources.vouched.retain(|id, vouched| is_news(&applied, *id, &vouched.peer_url));
        self.publish(&sources);
    }

    /// Takes over what a known peer says of members that the applied state
    /// lacks, or whose URL differs there. Another cluster's members and
    /// removed ones are ignored.
    pub fn vouch(&self, said: Members) {
        if said.cluster_id != self.shared.identity.cluster_id {
            return;
        }
        let mut sources = self.shared.sources.lock();
        for member in said.members {
            if is_news(&sources.applied, member.id, &member.peer_url) {
                sources.remember(member);
            }
        }
        self.publish(&sources);
    }

    /// Takes over the URL a known peer says it has.
    pub fn claim(&self, id: u64, peer_url: &str) {
        let mut sources = self.shared.sources.lock();
        if find(&sources.applied, id).is_none() {
            return;
        }
        if is_news(&sources.applied, id, peer_url) {
            sources.remember(Member { id, peer_url: peer_url.to_owned(), ..Member::default() });
        } else {
            sources.vouched.remove(&id);
        }
    }

    /// Whether a sender is who it says.
    pub fn check(&self, from_id: u64, incarnation: u64) -> Verdict {
        let members = Arc::clone(&self.shared.merged.borrow());
        if members.removed_ids.contains(&from_id) {
            return Verdict::Removed;
        }
        match find(&members, from_id) {
            Some(member) if member.incarnation == 0 || member.incarnation == incarnation => {
                Verdict::Known
            }
            Some(_) if mutant!(AcceptWrongIncarnation) => Verdict::Known,
            Some(_) => Verdict::WrongIncarnation,
            None => Verdict::Unknown,
        }
    }

    /// A member's peer URL, if the member is known.
    pub fn peer_url(&self, id: u64) -> Option<String> {
        let members = self.shared.merged.borrow();
        find(&members, id).map(|member| member.peer_url.clone())
    }

    /// Where a member may be reached: its URL as applied, then another that
    /// was claimed for it. Empty when it is unknown. A wrong guess is harmless,
    /// since whoever answers refuses what is not meant for it.
    pub fn peer_urls(&self, id: u64) -> Vec<String> {
        let sources = self.shared.sources.lock();
        let said = [find(&sources.applied, id), sources.vouched.get(&id)];
        said.into_iter().flatten().map(|member| member.peer_url.clone()).collect()
    }

    /// Everybody but this member, as (id, URL).
    pub fn peers(&self) -> Vec<(u64, String)> {
        let members = Arc::clone(&self.shared.merged.borrow());
        members
            .members
            .iter()
            .filter(|member| member.id != self.shared.identity.member_id)
            .map(|member| (member.id, member.peer_url.clone()))
            .collect()
    }

    /// Follows the members, vouched ones included.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Members>> {
        self.shared.merged.subscribe()
    }

    fn publish(&self, sources: &Sources) {
        let merged = sources.merged();
        self.shared.merged.send_if_modified(|present| {
            let changed = **present != merged;
            if changed {
                *present = Arc::new(merged);
            }
            changed
        });
    }
}

impl Sources {
    fn remember(&mut self, member: Member) {
        if self.vouched.len() < MAX_VOUCHED || self.vouched.contains_key(&member.id) {
            self.vouched.insert(member.id, member);
        }
    }

    fn merged(&self) -> Members {
        let mut merged = Members::clone(&self.applied);
        let added = self.vouched.values().filter(|member| find(&self.applied, member.id).is_none());
        merged.members.extend(added.cloned());
        merged.members.sort_by_key(|member| member.id);
        merged
    }
}

/// Whether the applied members lack this member or know another URL for it.
fn is_news(applied: &Members, id: u64, peer_url: &str) -> bool {
    !applied.removed_ids.contains(&id)
        && find(applied, id).is_none_or(|member| member.peer_url != peer_url)
}

fn find(members: &Members, id: u64) -> Option<&Member> {
    members.members.iter().find(|member| member.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, incarnation: u64) -> Member {
        Member { id, peer_url: format!("http://h:{id}"), incarnation, ..Member::default() }
    }

    fn members(list: Vec<Member>, removed_ids: Vec<u64>) -> Members {
        Members { cluster_id: 7, members: list, removed_ids }
    }

    fn directory() -> Directory {
        let identity = Identity { cluster_id: 7, member_id: 1, incarnation: 11 };
        let applied = members(vec![member(1, 11), member(2, 22), member(3, 0)], vec![9]);
        Directory::new(identity, Arc::new(applied))
    }

    #[test]
    fn a_sender_is_known_by_id_and_bound_incarnation() {
        let directory = directory();
        assert_eq!(directory.check(2, 22), Verdict::Known);
        assert_eq!(directory.check(2, 23), Verdict::WrongIncarnation);
        assert_eq!(directory.check(3, 5), Verdict::Known, "nothing is bound yet");
        assert_eq!(directory.check(4, 5), Verdict::Unknown);
        assert_eq!(directory.check(9, 5), Verdict::Removed);
    }

    #[test]
    fn vouched_members_are_added_but_never_against_the_applied_state() {
        let directory = directory();
        let mut follow = directory.subscribe();
        follow.mark_unchanged();
        directory.vouch(Members {
            cluster_id: 8,
            members: vec![member(4, 44)],
            ..members(vec![], vec![])
        });
        assert_eq!(directory.check(4, 44), Verdict::Unknown, "another cluster's member");
        directory.vouch(members(vec![member(2, 99), member(4, 44), member(9, 1)], vec![]));
        assert!(follow.has_changed().expect("the directory lives"));
        assert_eq!(directory.check(4, 44), Verdict::Known);
        assert_eq!(directory.peer_url(4).as_deref(), Some("http://h:4"));
        assert_eq!(directory.check(2, 22), Verdict::Known, "the applied entry wins");
        assert_eq!(directory.check(9, 1), Verdict::Removed, "a removed id stays removed");
    }

    #[test]
    fn the_applied_state_replaces_what_was_vouched() {
        let directory = directory();
        directory.vouch(members(vec![member(4, 44), member(5, 55)], vec![]));
        directory.set(Arc::new(members(vec![member(1, 11), member(4, 45)], vec![5, 9])));
        assert_eq!(directory.check(4, 44), Verdict::WrongIncarnation);
        assert_eq!(directory.check(5, 55), Verdict::Removed);
        assert_eq!(directory.peers(), [(4, "http://h:4".to_owned())]);
    }

    #[test]
    fn another_url_of_a_known_member_is_tried_second() {
        let directory = directory();
        directory.claim(2, "http://h:2");
        assert_eq!(directory.peer_urls(2), ["http://h:2"]);
        directory.claim(2, "http://new:2");
        directory.claim(4, "http://new:4");
        assert_eq!(directory.peer_urls(2), ["http://h:2", "http://new:2"]);
        assert_eq!(directory.peer_url(2).as_deref(), Some("http://h:2"));
        assert!(directory.peer_urls(4).is_empty(), "a stranger has no say");
        let moved = Member { peer_url: "http://new:2".to_owned(), ..member(2, 22) };
        directory.set(Arc::new(members(vec![member(1, 11), moved], vec![9])));
        assert_eq!(directory.peer_urls(2), ["http://new:2"]);
    }

    #[test]
    fn setting_the_same_members_wakes_nobody() {
        let directory = directory();
        let mut follow = directory.subscribe();
        follow.mark_unchanged();
        directory.set(directory.applied());
        assert!(!follow.has_changed().expect("the directory lives"));
    }

    #[test]
    fn a_moved_member_is_also_reached_where_it_was_until_it_says_that_it_moved() {
        let directory = directory();
        let mut moved = Members::clone(&directory.applied());
        let member = moved.members.iter_mut().find(|member| member.id == 2).unwrap();
        let old = std::mem::replace(&mut member.peer_url, "http://moved:2".to_owned());
        directory.set(Arc::new(moved));
        assert_eq!(directory.peer_urls(2), ["http://moved:2", old.as_str()]);
        directory.claim(2, &old);
        assert_eq!(directory.peer_urls(2), ["http://moved:2", old.as_str()]);
        directory.claim(2, "http://moved:2");
        assert_eq!(directory.peer_urls(2), ["http://moved:2"]);
    }
}
