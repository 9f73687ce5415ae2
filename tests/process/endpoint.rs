//! The client port of one node, as a client sees it.

use std::time::Duration;

use reqwest::{Body, Client, Method, header::HeaderMap, redirect::Policy};
use serde_json::Value;

use super::eventually;

/// Longer than any request timeout that a test configures.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(20);

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }
}

/// A member's client URL and a connection pool. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The member's id.
    pub id: u64,
    base: String,
    client: Client,
}

impl Endpoint {
    /// An endpoint with a pool of its own.
    pub fn new(id: u64, port: u16) -> Self {
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(CLIENT_TIMEOUT)
            .build()
            .expect("a client without TLS has nothing that could fail");
        Self { id, base: format!("http://127.0.0.1:{port}"), client }
    }

    /// The member's client URL.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// When there was no whole answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Result<Reply, reqwest::Error> {
        let url = format!("{}{path}", self.base);
        let response = self.client.request(method, url).body(body).send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Ok(Reply { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Sends a request until the answer is neither "try again" (429, 503) nor
    /// "unknown" (504), both of which a leader change on a slow machine may
    /// cause. Only for requests that may be carried out twice.
    ///
    /// # Panics
    /// When there is no such answer before the deadline.
    pub async fn ask(&self, method: Method, path: &str, body: &str) -> Reply {
        let what = format!("a settled answer of member {} to {method} {path}", self.id);
        eventually(&what, async || {
            let reply = self.request(method.clone(), path, body.to_owned()).await.ok()?;
            (!matches!(reply.status, 429 | 503 | 504)).then_some(reply)
        })
        .await
    }

    /// As [`ask`](Self::ask), and the status must be the expected one.
    ///
    /// # Panics
    /// When it is another.
    pub async fn expect(&self, status: u16, method: Method, path: &str, body: &str) -> Reply {
        let reply = self.ask(method.clone(), path, body).await;
        assert_eq!(
            reply.status,
            status,
            "member {} answered {method} {path}: {}",
            self.id,
            reply.text()
        );
        reply
    }

    /// Writes a key; returns once that is acknowledged.
    pub async fn put(&self, key: &str, value: &str) {
        self.expect(204, Method::PUT, &format!("/{key}"), value).await;
    }

    /// Reads a key linearizably.
    pub async fn get(&self, key: &str) -> Option<String> {
        self.value(&format!("/{key}")).await
    }

    /// Reads a key as this member has it, maybe an older value.
    pub async fn get_stale(&self, key: &str) -> Option<String> {
        self.value(&format!("/{key}?consistency=stale")).await
    }

    async fn value(&self, path: &str) -> Option<String> {
        let reply = self.ask(Method::GET, path, "").await;
        match reply.status {
            200 => Some(reply.text()),
            404 => None,
            other => {
                panic!("member {} answered GET {path} with {other}: {}", self.id, reply.text())
            }
        }
    }

    /// The status code of `/-/readyz`, or `None` without an answer.
    pub async fn readyz(&self) -> Option<u16> {
        self.request(Method::GET, "/-/readyz", "").await.ok().map(|reply| reply.status)
    }

    /// `/-/status`, or `None` without an answer.
    pub async fn try_status(&self) -> Option<Value> {
        let reply = self.request(Method::GET, "/-/status", "").await.ok()?;
        (reply.status == 200).then(|| reply.json())
    }

    /// A number of `/-/status`.
    ///
    /// # Panics
    /// When the status has no such number.
    pub async fn status(&self, field: &str) -> u64 {
        let status = self.expect(200, Method::GET, "/-/status", "").await.json();
        status[field].as_u64().unwrap_or_else(|| panic!("no number {field:?} in {status}"))
    }

    /// The members as this one knows them, ascending by id:
    /// id, peer URL, whether it is a learner.
    pub async fn members(&self) -> Vec<(u64, String, bool)> {
        let list = self.expect(200, Method::GET, "/-/members", "").await.json();
        let read = |member: &Value| {
            let id = member["id"].as_u64()?;
            Some((id, member["peer_url"].as_str()?.to_owned(), member["learner"].as_bool()?))
        };
        let members = list["members"].as_array().and_then(|all| all.iter().map(read).collect());
        let mut members: Vec<_> = members.unwrap_or_else(|| panic!("no member list: {list}"));
        members.sort_unstable();
        members
    }

    /// Adds a member, or confirms that it was added.
    pub async fn add_member(&self, id: u64, peer_url: &str, learner: bool) {
        let body = serde_json::json!({ "id": id, "peer_url": peer_url, "learner": learner });
        let reply = self.expect(201, Method::POST, "/-/members", &body.to_string()).await;
        assert_eq!(reply.json()["id"], id);
        assert_eq!(reply.json()["peer_url"], peer_url);
    }

    /// Removes a member.
    pub async fn remove_member(&self, id: u64) {
        let path = format!("/-/members/{id}");
        let mut sent_before = false;
        let removed = async || {
            let reply = self.request(Method::DELETE, &path, "").await.ok();
            let repeated = std::mem::replace(&mut sent_before, true);
            match reply?.status {
                204 => Some(()),
                // An earlier try, whose answer was "unknown", succeeded.
                404 if repeated => Some(()),
                429 | 503 | 504 => None,
                other => panic!("member {} answered DELETE {path} with {other}", self.id),
            }
        };
        eventually("the removal of a member", removed).await;
    }

    /// What replicas must agree on: applied index, revision and state hash.
    pub async fn state(&self) -> Option<(u64, u64, String)> {
        let reply = self.request(Method::GET, "/-/hash", "").await.ok()?;
        let state: Value = serde_json::from_slice(&reply.body).ok()?;
        let hash = state.get("hash")?.to_string();
        Some((state["applied_index"].as_u64()?, state["revision"].as_u64()?, hash))
    }
}
