//! The quota: this member raises the NOSPACE alarm when its data outgrow it.

use std::time::Duration;

use super::Parts;
use crate::proto::{
    SetAlarm,
    command::Op,
    etcdserverpb::{AlarmMember, AlarmType},
};

/// How often the size is looked at; also how much can be written beyond the
/// quota, in time.
const INTERVAL: Duration = Duration::from_millis(250);

impl Parts {
    /// Watches the size of the state database.
    pub(super) async fn watch_quota(&self) {
        let quota = self.config.quota_backend_bytes;
        if quota == 0 {
            return;
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Ok(size) = self.handle.state_size_bytes() else { continue };
            if size <= quota {
                continue;
            }
            let member = self.config.id;
            let own = AlarmMember { member_id: member, alarm: AlarmType::Nospace.into() };
            if self.handle.alarms().alarms.contains(&own) {
                continue;
            }
            slog::warn!(
                self.logger,
                "the data take {size} bytes, more than --quota-backend-bytes {quota}: raising \
                 the NOSPACE alarm, which stops writes; delete, compact, then disarm it"
            );
            let alarm = AlarmType::Nospace.into();
            let op = Op::SetAlarm(SetAlarm { member, alarm, active: true });
            if let Err(why) = self.handle.submit(op).await {
                slog::warn!(self.logger, "cannot raise the NOSPACE alarm yet: {why}");
            }
        }
    }
}
