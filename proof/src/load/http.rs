//! A client of plain HTTP.

use std::{collections::HashMap, time::Duration};

use reqwest::Method;

use super::{
    Client, Dice, Shared, Target,
    target::Connections,
    value::{decode, encode},
};
use crate::{
    Result,
    history::{Answer, Ask, Condition, End, Record},
    process::{Endpoint, Reply},
};

/// What all its keys begin with.
pub const PREFIX: &str = "h/";

/// Keys that are in use at a time.
const KEYS: u64 = 8;

/// After this time come other keys: the search for an order is quick when a
/// key has few requests.
const KEYS_LAST: Duration = Duration::from_secs(10);

/// What the keys begin with that are in use at a time.
pub fn prefix(shared: &Shared) -> String {
    let epoch = u128::from(shared.clock.now()) / KEYS_LAST.as_nanos();
    format!("{PREFIX}{epoch}/")
}

pub struct HttpClient {
    connections: Connections<Endpoint>,
    shared: Shared,
    dice: Dice,
    /// The last tag that was seen of keys in use.
    tags: HashMap<String, u64>,
}

impl HttpClient {
    pub fn new(targets: &[Target], shared: Shared, mut dice: Dice) -> Result<Self> {
        let mut connections = Connections::new(targets, Target::endpoint)?;
        connections.change(&mut dice);
        Ok(Self { connections, shared, dice, tags: HashMap::new() })
    }

    fn choose(&mut self) -> (String, Ask) {
        let key = format!("{}{}", prefix(&self.shared), self.dice.below(KEYS));
        let put = |condition| {
            let value = self.shared.values.next();
            Ask::HttpPut { key: key.clone(), value, condition }
        };
        let ask = match self.dice.below(10) {
            0..=3 => Ask::HttpGet(key.clone()),
            4..=6 => put(Condition::Always),
            7 => put(Condition::Absent),
            8 => match self.tags.get(&key) {
                Some(revision) => put(Condition::Revision(*revision)),
                None => Ask::HttpGet(key.clone()),
            },
            _ => Ask::HttpDelete(key.clone()),
        };
        (key, ask)
    }
}

impl Client for HttpClient {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    async fn ask(&mut self) -> Record {
        let (key, ask) = self.choose();
        let (member, endpoint) = self.connections.present();
        let record = send(member, &endpoint, ask, &self.shared).await;
        if let Some(revision) = record.answer().and_then(Answer::revision) {
            if self.tags.len() > 4 * KEYS as usize {
                self.tags.clear();
            }
            self.tags.insert(key, revision);
        }
        record
    }

    fn change_connection(&mut self) {
        self.connections.change(&mut self.dice);
    }
}

/// Sends a request once and records what came of it.
pub async fn send(member: u64, endpoint: &Endpoint, ask: Ask, shared: &Shared) -> Record {
    let (method, key) = match &ask {
        Ask::HttpPut { key, .. } => (Method::PUT, key.as_str()),
        Ask::HttpDelete(key) => (Method::DELETE, key.as_str()),
        Ask::HttpGet(key) => (Method::GET, key.as_str()),
        // Answered 404 or 405, which is a violation.
        _ => (Method::GET, "-/not-http"),
    };
    let mut request = endpoint.build(method, &format!("/{key}"));
    if let Ask::HttpPut { value, condition, .. } = &ask {
        request = request.body(encode(*value));
        request = match condition {
            Condition::Always => request,
            Condition::Absent => request.header("if-none-match", "*"),
            Condition::Revision(revision) => request.header("if-match", format!("\"{revision}\"")),
        };
    }
    let called = shared.clock.now();
    let reply = endpoint.send(request).await;
    let ended = shared.clock.now();
    let end = match reply {
        Err(_) => End::Unknown,
        Ok(reply) => end(&ask, &reply).unwrap_or_else(|why| {
            let text = reply.text();
            shared.figures.violation(format!("member {member}: {why}: {ask:?}: {text}"));
            End::Unknown
        }),
    };
    Record { member, ask, called, ended, end }
}

/// What a reply says; `Err` when a server must not answer so.
fn end(ask: &Ask, reply: &Reply) -> std::result::Result<End, String> {
    let number = |name: &str| {
        reply.number(name).ok_or_else(|| format!("no number as {name} in {:?}", reply.headers))
    };
    let answer = match (ask, reply.status) {
        (_, 503 | 429) => return Ok(End::NotApplied),
        (_, 504) => return Ok(End::Unknown),
        (Ask::HttpGet(_), 200) => {
            let value = decode(&reply.body).ok_or("this value was not written by anybody")?;
            Answer::Value { value, modified: number("etag")? }
        }
        (Ask::HttpPut { .. }, 204) => {
            Answer::Wrote { revision: number("etag")?, previous: Vec::new() }
        }
        (Ask::HttpDelete(_), 204) => {
            Answer::Wrote { revision: number("x-metastore-revision")?, previous: Vec::new() }
        }
        (Ask::HttpGet(_) | Ask::HttpDelete(_), 404) => Answer::Missing,
        (Ask::HttpPut { condition: Condition::Absent | Condition::Revision(_), .. }, 412) => {
            Answer::Failed
        }
        (_, status) => return Err(format!("answered {status}")),
    };
    Ok(End::Ok(answer))
}
