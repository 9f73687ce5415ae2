//! Ranges of keys, searched for those that hold a key.

use std::{cmp::Ordering, collections::BTreeSet};

use bytes::Bytes;

use super::{WatchId, spec::End};

/// Watches by their ranges: an AVL tree ordered by range, in which each node
/// knows how far the ranges below it reach.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    root: Link,
}

type Link = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    /// Who watches exactly this range; never empty.
    watches: BTreeSet<WatchId>,
    /// The latest end in this node and below it.
    reach: End,
    height: u32,
    left: Link,
    right: Link,
}

impl Intervals {
    pub fn add(&mut self, start: &Bytes, end: &End, id: WatchId) {
        self.root = Some(added(self.root.take(), start, end, id));
    }

    pub fn remove(&mut self, start: &Bytes, end: &End, id: WatchId) {
        self.root = removed(self.root.take(), start, end, id);
    }

    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Calls `found` for everybody who watches the key. Returns the number of
    /// nodes looked at.
    pub fn find(&self, key: &[u8], found: &mut impl FnMut(WatchId)) -> u64 {
        find(&self.root, key, found)
    }
}

fn find(link: &Link, key: &[u8], found: &mut impl FnMut(WatchId)) -> u64 {
    let Some(node) = link else { return 0 };
    if !node.reach.is_after(key) {
        return 1;
    }
    let mut seen = 1 + find(&node.left, key, found);
    // To the right everything starts where this one does or later.
    if node.start[..] <= *key {
        if node.end.is_after(key) {
            node.watches.iter().for_each(|id| found(*id));
        }
        seen += find(&node.right, key, found);
    }
    seen
}

fn added(link: Link, start: &Bytes, end: &End, id: WatchId) -> Box<Node> {
    let Some(mut node) = link else {
        return Box::new(Node {
            start: start.clone(),
            end: end.clone(),
            watches: BTreeSet::from([id]),
            reach: end.clone(),
            height: 1,
            left: None,
            right: None,
        });
    };
    match node.compare(start, end) {
        Ordering::Less => node.left = Some(added(node.left.take(), start, end, id)),
        Ordering::Greater => node.right = Some(added(node.right.take(), start, end, id)),
        Ordering::Equal => {
            node.watches.insert(id);
        }
    }
    node.balanced()
}

fn removed(link: Link, start: &Bytes, end: &End, id: WatchId) -> Link {
    let mut node = link?;
    match node.compare(start, end) {
        Ordering::Less => node.left = removed(node.left.take(), start, end, id),
        Ordering::Greater => node.right = removed(node.right.take(), start, end, id),
        Ordering::Equal => {
            node.watches.remove(&id);
            if node.watches.is_empty() {
                let Some(right) = node.right.take() else { return node.left.take() };
                let (mut first, rest) = without_first(right);
                (first.left, first.right) = (node.left.take(), rest);
                node = first;
            }
        }
    }
    Some(node.balanced())
}

/// Takes the first node out of a tree.
fn without_first(mut node: Box<Node>) -> (Box<Node>, Link) {
    match node.left.take() {
        None => {
            let rest = node.right.take();
            (node, rest)
        }
        Some(left) => {
            let (first, rest) = without_first(left);
            node.left = rest;
            (first, Some(node.balanced()))
        }
    }
}

fn height(link: &Link) -> u32 {
    link.as_ref().map_or(0, |node| node.height)
}

impl Node {
    /// How a range compares with this node's.
    fn compare(&self, start: &Bytes, end: &End) -> Ordering {
        start.cmp(&self.start).then_with(|| end.cmp(&self.end))
    }

    /// Brings height and reach up to date after a change below.
    fn update(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
        let below = [&self.left, &self.right].into_iter().flatten().map(|node| &node.reach);
        let reach = below.chain([&self.end]).max();
        if let Some(reach) = reach.cloned() {
            self.reach = reach;
        }
    }

    /// The same tree with sides whose heights differ by one at most, if they
    /// differed by two at most.
    fn balanced(mut self: Box<Self>) -> Box<Self> {
        if height(&self.left) > height(&self.right) + 1 {
            if let Some(left) = self.left.take() {
                let leans_inwards = height(&left.right) > height(&left.left);
                self.left = Some(if leans_inwards { left.turned_left() } else { left });
            }
            return self.turned_right();
        }
        if height(&self.right) > height(&self.left) + 1 {
            if let Some(right) = self.right.take() {
                let leans_inwards = height(&right.left) > height(&right.right);
                self.right = Some(if leans_inwards { right.turned_right() } else { right });
            }
            return self.turned_left();
        }
        self.update();
        self
    }

    /// The same tree with the left child on top.
    fn turned_right(mut self: Box<Self>) -> Box<Self> {
        let Some(mut top) = self.left.take() else { return self };
        self.left = top.right.take();
        self.update();
        top.right = Some(self);
        top.update();
        top
    }

    /// The same tree with the right child on top.
    fn turned_left(mut self: Box<Self>) -> Box<Self> {
        let Some(mut top) = self.right.take() else { return self };
        self.right = top.left.take();
        self.update();
        top.left = Some(self);
        top.update();
        top
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Checks order, balance and reach; returns the number of nodes.
    fn check(link: &Link) -> usize {
        let Some(node) = link else { return 0 };
        assert!(!node.watches.is_empty());
        let (left, right) = (height(&node.left), height(&node.right));
        assert!(left.abs_diff(right) <= 1, "heights {left} and {right}");
        assert_eq!(node.height, 1 + left.max(right));
        let mut reach = node.end.clone();
        for child in [&node.left, &node.right].into_iter().flatten() {
            reach = reach.max(child.reach.clone());
        }
        assert_eq!(node.reach, reach);
        if let Some(child) = &node.left {
            assert_eq!(node.compare(&child.start, &child.end), Ordering::Less);
        }
        if let Some(child) = &node.right {
            assert_eq!(node.compare(&child.start, &child.end), Ordering::Greater);
        }
        1 + check(&node.left) + check(&node.right)
    }

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0_u8..4, 0..3).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = End> {
        prop_oneof![4 => key().prop_map(End::Before), 1 => Just(End::Never)]
    }

    proptest! {
        #[test]
        fn finds_what_a_linear_scan_finds(
            steps in proptest::collection::vec((key(), end(), 0_i64..4, any::<bool>()), 1..200),
            keys in proptest::collection::vec(key(), 1..20),
        ) {
            let mut intervals = Intervals::default();
            let mut all = BTreeSet::new();
            for (start, end, watch, add) in steps {
                let id = WatchId { stream: 1, watch };
                if add {
                    intervals.add(&start, &end, id);
                    all.insert((start, end, id));
                } else if let Some(victim) = all.iter().nth(watch as usize * 3).cloned() {
                    let (start, end, id) = &victim;
                    intervals.remove(start, end, *id);
                    all.remove(&victim);
                } else {
                    intervals.remove(&start, &end, id);
                    all.remove(&(start, end, id));
                }
                check(&intervals.root);
                prop_assert_eq!(intervals.is_empty(), all.is_empty());
            }
            for key in keys {
                let mut found = Vec::new();
                intervals.find(&key, &mut |id| found.push(id));
                found.sort();
                let mut expected: Vec<_> = all
                    .iter()
                    .filter(|(start, end, _)| start <= &key && end.is_after(&key))
                    .map(|(_, _, id)| *id)
                    .collect();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn search_does_not_look_at_every_range() {
        let mut intervals = Intervals::default();
        for number in 0..10_000_u32 {
            let start = Bytes::from(format!("{number:05}/"));
            let end = End::Before(Bytes::from(format!("{number:05}0")));
            intervals.add(&start, &end, WatchId { stream: 1, watch: i64::from(number) });
        }
        assert_eq!(check(&intervals.root), 10_000);
        let mut found = Vec::new();
        let seen = intervals.find(b"07777/x", &mut |id| found.push(id.watch));
        assert_eq!(found, [7777]);
        assert!(seen < 100, "looked at {seen} of 10,000 ranges");
    }
}
