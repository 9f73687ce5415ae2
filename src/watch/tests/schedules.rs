//! Random schedules, checked against the history.

use proptest::{collection::vec, prelude::*};

use super::world::{SMALL, World, key};
use crate::watch::{Input, Spec};

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Vec<(u8, bool)>>),
    Compact(u64),
    Deliver,
    Lose,
    OpenStream,
    CloseStream(usize),
    /// Stream, number, spec, and how far before (or after) now it starts.
    Open(usize, i64, Spec, Option<i64>),
    Cancel(usize, i64),
    Progress(usize),
    Take(usize, usize),
    AnswerRead(usize),
    Tick,
}

fn spec() -> impl Strategy<Value = Spec> {
    let range_end = prop_oneof![
        3 => Just(bytes::Bytes::new()),
        1 => Just(bytes::Bytes::from_static(b"\0")),
        2 => (0_u8..8).prop_map(key),
    ];
    let filter = prop_oneof![3 => Just((false, false)), 1 => Just((true, false)),
        1 => Just((false, true)), 1 => Just((true, true))];
    (0_u8..6, range_end, filter, any::<bool>()).prop_map(
        |(number, range_end, (no_put, no_delete), progress_notify)| Spec {
            key: key(number),
            range_end,
            no_put,
            no_delete,
            progress_notify,
            ..Spec::default()
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let changes = vec((0_u8..6, any::<bool>()), 1..4);
    prop_oneof![
        8 => vec(changes, 1..5).prop_map(Step::Apply),
        1 => (0_u64..8).prop_map(Step::Compact),
        8 => Just(Step::Deliver),
        1 => Just(Step::Lose),
        1 => Just(Step::OpenStream),
        1 => (0_usize..8).prop_map(Step::CloseStream),
        4 => (0_usize..4, -1_i64..5, spec(), proptest::option::of(-3_i64..12))
            .prop_map(|(stream, number, spec, back)| Step::Open(stream, number, spec, back)),
        1 => (0_usize..4, 0_i64..5).prop_map(|(stream, number)| Step::Cancel(stream, number)),
        2 => (0_usize..4).prop_map(Step::Progress),
        6 => (0_usize..4, 1_usize..6).prop_map(|(stream, count)| Step::Take(stream, count)),
        6 => (0_usize..4).prop_map(Step::AnswerRead),
        2 => Just(Step::Tick),
    ]
}

fn run(world: &mut World, step: Step) {
    let stream =
        |world: &World, place: usize| world.holders.keys().nth(place).copied().unwrap_or(99);
    match step {
        Step::Apply(batch) => world.apply(&batch),
        Step::Compact(back) => world.compact(world.revision().saturating_sub(back)),
        Step::Deliver => world.deliver(),
        Step::Lose => world.lose(),
        Step::OpenStream => {
            world.open_stream();
        }
        Step::CloseStream(place) => world.close_stream(stream(world, place)),
        Step::Open(place, number, mut spec, back) => {
            if let Some(back) = back {
                spec.start_revision = world.revision().saturating_add_signed(-back).max(1);
            }
            world.open(stream(world, place), number, spec);
        }
        Step::Cancel(place, watch) => {
            world.give(Input::Cancel { stream: stream(world, place), watch });
        }
        Step::Progress(place) => world.ask_progress(stream(world, place)),
        Step::Take(place, count) => {
            let stream = stream(world, place);
            (0..count).for_each(|_| drop(world.take(stream)));
        }
        Step::AnswerRead(place) => world.answer_read(place),
        Step::Tick => world.give(Input::Tick),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn every_watch_is_told_everything_once_and_in_order(steps in vec(step(), 1..150)) {
        let mut world = World::new(SMALL);
        for _ in 0..3 {
            world.open_stream();
        }
        for step in steps {
            run(&mut world, step);
        }
        world.settle();
        // The hub still listens.
        world.apply(&[(0..6).map(|key| (key, false)).collect()]);
        world.settle();
        for stream in world.holders.keys().copied().collect::<Vec<_>>() {
            world.close_stream(stream);
        }
        prop_assert!(world.hub.is_idle() && world.hub.watches() == 0);
        prop_assert_eq!((world.hub.queued_bytes(), world.reads.len()), (0, 0));
    }
}
