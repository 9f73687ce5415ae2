//! A member as a client reaches it.

use std::{net::SocketAddr, time::Duration};

use tonic::{
    Code, Status,
    transport::{Channel, Endpoint as Grpc},
};

use super::{ANSWER_LIMIT, Dice};
use crate::{Result, history::End, process::Endpoint, report::During};

/// How soon a client notices that a connection is dead.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// A member's id and client address.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The member's id.
    pub id: u64,
    /// Where it listens for clients.
    pub address: SocketAddr,
}

impl Target {
    /// A gRPC connection of its own, made with the first call.
    ///
    /// # Errors
    /// When the address makes no URL.
    pub fn channel(&self) -> Result<Channel> {
        let endpoint = Grpc::from_shared(format!("http://{}", self.address)).during("a URL")?;
        Ok(endpoint
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .keep_alive_while_idle(true)
            .connect_lazy())
    }

    /// An HTTP client of its own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn endpoint(&self) -> Result<Endpoint> {
        Endpoint::new(self.id, self.address, ANSWER_LIMIT)
    }
}

/// Connections to all members, of which one is used until it fails.
#[derive(Debug)]
pub struct Connections<C> {
    all: Vec<(u64, C)>,
    at: usize,
}

impl<C: Clone> Connections<C> {
    /// One connection to each member.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn new(targets: &[Target], connect: impl Fn(&Target) -> Result<C>) -> Result<Self> {
        let connect = |target: &Target| Ok((target.id, connect(target)?));
        Ok(Self { all: targets.iter().map(connect).collect::<Result<_>>()?, at: 0 })
    }

    /// The present one: the member's id and the connection.
    pub fn present(&self) -> (u64, C) {
        self.all[self.at].clone()
    }

    /// Goes on with any of them.
    pub fn change(&mut self, dice: &mut Dice) {
        self.at = dice.below(self.all.len() as u64) as usize;
    }
}

/// How a gRPC call without an answer ended; `Err` when a server must not
/// answer so. The texts are the server's promise: it says "timed out" when it
/// does not know, and these when the request was surely not applied. Whatever
/// the connection says means nothing.
pub fn ended(status: &Status) -> std::result::Result<End, String> {
    let not_applied = matches!(
        (status.code(), status.message()),
        (
            Code::Unavailable,
            "etcdserver: no leader" | "etcdserver: leader changed" | "etcdserver: server stopped"
        ) | (Code::ResourceExhausted, "etcdserver: too many requests")
    );
    if not_applied {
        return Ok(End::NotApplied);
    }
    let of_connection = matches!(
        status.code(),
        Code::Unavailable
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Internal
    );
    if of_connection && !status.message().contains("defect") {
        return Ok(End::Unknown);
    }
    Err(format!("a member answered {status:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_words_promise_anything() {
        let status = |text: &str| ended(&Status::unavailable(text));
        assert_eq!(status("etcdserver: no leader"), Ok(End::NotApplied));
        assert_eq!(status("etcdserver: request timed out"), Ok(End::Unknown));
        assert_eq!(status("tcp connect error"), Ok(End::Unknown));
        assert_eq!(ended(&Status::cancelled("h2")), Ok(End::Unknown));
        assert!(ended(&Status::data_loss("etcdserver: corrupt cluster")).is_err());
        assert!(ended(&Status::internal("this is a defect, please report it")).is_err());
    }
}
