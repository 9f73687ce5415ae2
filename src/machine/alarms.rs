//! Alarms: conditions that members raise and an operator disarms.

use crate::proto::{
    Alarms, SetAlarm,
    etcdserverpb::{AlarmMember, AlarmType},
};

/// The alarms after one is raised or disarmed, if that changes them. Raising
/// none, or one of an unknown kind, changes nothing.
pub(super) fn set(alarms: &Alarms, set: &SetAlarm) -> Option<Alarms> {
    let given = AlarmMember { member_id: set.member, alarm: set.alarm };
    let order = |alarm: &AlarmMember| (alarm.member_id, alarm.alarm);
    let place = alarms.alarms.binary_search_by_key(&order(&given), order);
    let mut after = alarms.clone();
    match (place, set.active) {
        (Err(place), true) if is_known(set.alarm) => after.alarms.insert(place, given),
        (Ok(place), false) => drop(after.alarms.remove(place)),
        _ => return None,
    }
    Some(after)
}

/// Whether any member is out of space.
pub(super) fn no_space(alarms: &Alarms) -> bool {
    alarms.alarms.iter().any(|alarm| alarm.alarm() == AlarmType::Nospace)
}

/// Whether the CORRUPT alarm names this member: its state is another than that
/// of a majority, and nothing in it can be believed.
pub fn is_accused(alarms: &Alarms, member: u64) -> bool {
    alarms.alarms.iter().any(|alarm| {
        alarm.member_id == member && alarm.alarm() == AlarmType::Corrupt && member != 0
    })
}

fn is_known(alarm: i32) -> bool {
    AlarmType::try_from(alarm).is_ok_and(|alarm| alarm != AlarmType::None)
}
