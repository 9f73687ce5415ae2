//! The Range request of etcd.

use std::cmp::Ordering;

use prost::Message;

use super::{
    Streamed,
    moment::{At, Keys, Moment, key_value},
    stop::Stopped,
};
use crate::{
    proto::{
        Refused,
        etcdserverpb::{
            RangeRequest, RangeResponse, ResponseHeader,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
    storage::Reader,
};

/// Answers a Range request, with pairs of at most `max_bytes` in all, which it
/// is charged for. While it sorts, the best pairs so far have to keep to that
/// too.
pub(super) fn range<R: Reader>(
    moment: &Moment<'_, R>,
    request: &RangeRequest,
    max_bytes: &mut u64,
) -> Stopped<RangeResponse> {
    let at = moment.at(request.revision)?;
    let keys = Keys::new(&request.key, &request.range_end);
    let mut response = RangeResponse {
        header: Some(header(moment.revision)),
        kvs: Vec::new(),
        more: false,
        count: 0,
    };
    let count = if request.count_only {
        at.count(&keys)?
    } else {
        let mut selection = Selection::new(request, *max_bytes);
        let count = select(&at, &keys, &mut selection)?;
        (response.kvs, response.more) = selection.finish();
        let bytes: usize = response.kvs.iter().map(KeyValue::encoded_len).sum();
        *max_bytes = max_bytes.saturating_sub(bytes as u64);
        count
    };
    let count = if mutant!(CountIsPage) { response.kvs.len() as u64 } else { count };
    response.count = count.cast_signed();
    Ok(response)
}

/// Gives the pairs one after the other; see [`View::stream`](super::View::stream).
pub(super) fn stream<R: Reader>(
    moment: &Moment<'_, R>,
    request: &RangeRequest,
    take: &mut dyn FnMut(KeyValue) -> bool,
) -> Stopped<Streamed> {
    let at = moment.at(request.revision)?;
    let keys = Keys::new(&request.key, &request.range_end);
    let mut streamed = Streamed { revision: moment.revision, count: 0, more: false };
    if request.count_only {
        streamed.count = at.count(&keys)?;
        return Ok(streamed);
    }
    let limit = limit(request);
    let mut given = 0;
    for found in at.records(&keys) {
        let (key, record) = found?;
        streamed.count += 1;
        let mut pair = key_value(key, record);
        if !passes(request, &pair) {
            continue;
        }
        if given == limit {
            streamed.more = true;
            streamed.count += at.count_after(&keys, &pair.key)?;
            break;
        }
        given += 1;
        if request.keys_only {
            pair.value.clear();
        }
        if !take(pair) {
            break;
        }
    }
    Ok(streamed)
}

/// The header of an answer from the log: the revision only.
pub(super) fn header(revision: u64) -> ResponseHeader {
    ResponseHeader { revision: revision.cast_signed(), ..ResponseHeader::default() }
}

/// Offers every pair to the selection until it wants no more; gives how many
/// there are in all.
fn select<R: Reader>(at: &At<'_, R>, keys: &Keys, selection: &mut Selection<'_>) -> Stopped<u64> {
    let mut count = 0;
    for found in at.records(keys) {
        let (key, record) = found?;
        count += 1;
        if !selection.offer(key_value(key.clone(), record))? {
            return Ok(count + at.count_after(keys, &key)?);
        }
    }
    Ok(count)
}

/// The limit of a request; none is more than there can be.
fn limit(request: &RangeRequest) -> u64 {
    u64::try_from(request.limit).ok().filter(|&limit| limit != 0).unwrap_or(u64::MAX)
}

fn has_filters(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    .iter()
    .any(|&bound| bound != 0)
}

/// Whether a pair is within the bounds on its revisions.
fn passes(request: &RangeRequest, pair: &KeyValue) -> bool {
    let within = |revision: i64, min: i64, max: i64| {
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    within(pair.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(pair.create_revision, request.min_create_revision, request.max_create_revision)
}

/// The pairs that a request selects, of those offered in key order.
struct Selection<'a> {
    request: &'a RangeRequest,
    limit: u64,
    /// Which order the answer has, unless that of the keys.
    order: Option<(SortTarget, SortOrder)>,
    /// How many pairs are taken before they are sorted.
    taken: u64,
    max_bytes: u64,
    bytes: u64,
    matched: u64,
    pairs: Vec<KeyValue>,
}

impl<'a> Selection<'a> {
    fn new(request: &'a RangeRequest, max_bytes: u64) -> Self {
        let limit = limit(request);
        let order = match (request.sort_target(), request.sort_order()) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
            (target, SortOrder::None) => Some((target, SortOrder::Ascend)),
            (target, order) => Some((target, order)),
        };
        // One more than the limit tells whether there is more. Etcd takes no
        // more than that out of the store unless it was told to sort or filter.
        let plain = request.sort_order() == SortOrder::None && !has_filters(request);
        let taken = if order.is_none() || plain { limit.saturating_add(1) } else { u64::MAX };
        Self { request, limit, order, taken, max_bytes, bytes: 0, matched: 0, pairs: Vec::new() }
    }

    /// Takes a pair in; tells whether it wants more.
    fn offer(&mut self, mut pair: KeyValue) -> Stopped<bool> {
        if !passes(self.request, &pair) {
            return Ok(true);
        }
        self.matched += 1;
        if self.order.is_none() && self.matched > self.limit {
            return Ok(false);
        }
        let sorts_by_value = matches!(self.order, Some((SortTarget::Value, _)));
        if self.request.keys_only && !sorts_by_value {
            pair.value.clear();
        }
        self.bytes += pair.encoded_len() as u64;
        self.pairs.push(pair);
        // Twice the limit before each sorting makes that cheap on the whole.
        let crowded = self.pairs.len() as u64 >= self.limit.saturating_mul(2).saturating_add(64);
        if crowded || self.bytes > self.max_bytes {
            self.keep_best();
        }
        if self.bytes > self.max_bytes {
            return Err(Refused::ResponseTooLarge.into());
        }
        Ok(self.matched < self.taken)
    }

    /// The pairs in order, and whether the limit left any out.
    fn finish(mut self) -> (Vec<KeyValue>, bool) {
        self.keep_best();
        if self.request.keys_only {
            self.pairs.iter_mut().for_each(|pair| pair.value.clear());
        }
        (self.pairs, self.matched > self.limit)
    }

    /// Sorts, and drops what is beyond the limit.
    fn keep_best(&mut self) {
        if let Some((target, order)) = self.order {
            // Stable: equal ones stay in the order of their keys.
            self.pairs.sort_by(|a, b| {
                let ascending = compare(target, a, b);
                if order == SortOrder::Descend { ascending.reverse() } else { ascending }
            });
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if self.pairs.len() > limit {
            self.pairs.truncate(limit);
            self.bytes = self.pairs.iter().map(|pair| pair.encoded_len() as u64).sum();
        }
    }
}

fn compare(target: SortTarget, a: &KeyValue, b: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}
