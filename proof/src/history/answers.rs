//! Each gRPC answer is what the store said at its revision.

use super::{Answer, Ask, Pair, Record, Store};
use crate::Figures;

/// Checks every gRPC answer.
pub fn check(records: &[Record], store: &Store, figures: &Figures) {
    let mut checked = 0;
    for record in records {
        let Some(answer) = record.answer() else { continue };
        if let Some(explained) = explain(&record.ask, answer, store) {
            checked += 1;
            if let Err(why) = explained {
                figures.violation(format!("{why}, and not what was answered: {record:?}"));
            }
        }
    }
    figures.count("gRPC answers replayed", checked);
}

/// Whether the store gives this answer; `None` when it is one of plain HTTP.
fn explain(ask: &Ask, answer: &Answer, store: &Store) -> Option<Result<(), String>> {
    let explained = match (ask, answer) {
        (Ask::HttpGet(_) | Ask::HttpPut { .. } | Ask::HttpDelete(_), _) => return None,
        (Ask::Put { key, .. }, Answer::Wrote { revision, previous }) => {
            same(store.at(key, revision - 1), previous)
        }
        (Ask::Range { keys, .. }, Answer::Read { revision, pairs }) => {
            if *revision > store.revision() {
                Err(format!("the store ended at revision {}", store.revision()))
            } else {
                same(store.range(keys, *revision), pairs)
            }
        }
        (Ask::CompareAndPut { key, expected, .. }, Answer::Wrote { revision, .. }) => {
            let found = modified(store.at(key, revision - 1));
            expect(found == *expected, || format!("the key was at {found}"))
        }
        (Ask::CompareAndPut { key, expected, .. }, Answer::Read { revision, pairs }) => {
            let found = store.at(key, *revision);
            let failed = modified(found) != *expected;
            expect(failed, || "the comparison holds".to_owned()).and(same(found, pairs))
        }
        (Ask::DeleteRange(keys), Answer::Wrote { revision, previous }) => {
            let found = store.range(keys, revision - 1);
            expect(!found.is_empty(), || "there was nothing to delete".to_owned())
                .and(same(found, previous))
        }
        (Ask::DeleteRange(keys), Answer::Read { revision, pairs }) => {
            let found = store.range(keys, *revision);
            expect(found.is_empty(), || format!("there was {found:?}")).and(same(found, pairs))
        }
        (ask, _) => Err(format!("this is no answer to {ask:?}")),
    };
    Some(explained)
}

fn modified(pair: Option<&Pair>) -> u64 {
    pair.map_or(0, |pair| pair.modified)
}

fn expect(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn same<'a>(found: impl IntoIterator<Item = &'a Pair>, told: &[Pair]) -> Result<(), String> {
    let found: Vec<&Pair> = found.into_iter().collect();
    expect(found.iter().copied().eq(told), || format!("the store had {found:?}"))
}
