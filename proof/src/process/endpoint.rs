//! The client port of one member over plain HTTP.

use std::{net::SocketAddr, time::Duration};

use reqwest::{Body, Client, Method, RequestBuilder, header::HeaderMap, redirect::Policy};
use serde_json::Value;

use crate::{Result, report::During};

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

    /// A header field that is a number, quoted or not.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.trim_matches('"').parse().ok()
    }
}

/// What replicas must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The last applied entry.
    pub applied_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// The hash of everything.
    pub hash: String,
}

/// A member's client URL and a connection pool. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The member's id.
    pub id: u64,
    address: SocketAddr,
    client: Client,
}

impl Endpoint {
    /// An endpoint with a pool of its own. A request that takes longer than
    /// `timeout` fails.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn new(id: u64, address: SocketAddr, timeout: Duration) -> Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(timeout)
            .timeout(timeout)
            .build()
            .during("make an HTTP client")?;
        Ok(Self { id, address, client })
    }

    /// Where the member listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The member's client URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A request, for whoever adds headers to it.
    pub fn build(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url()))
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// When there was no whole answer.
    pub async fn send(
        &self,
        request: RequestBuilder,
    ) -> std::result::Result<Reply, reqwest::Error> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Ok(Reply { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Sends one request with a body, once.
    ///
    /// # Errors
    /// When there was no whole answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> std::result::Result<Reply, reqwest::Error> {
        self.send(self.build(method, path).body(body)).await
    }

    /// Whether the member says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let reply = self.request(Method::GET, "/-/readyz", "").await;
        reply.is_ok_and(|reply| reply.status == 200)
    }

    async fn json(&self, path: &str) -> Option<Value> {
        let reply = self.request(Method::GET, path, "").await.ok()?;
        if reply.status != 200 {
            return None;
        }
        serde_json::from_slice(&reply.body).ok()
    }

    /// `/-/status`, or `None` without an answer.
    pub async fn status(&self) -> Option<Value> {
        self.json("/-/status").await
    }

    /// What replicas must agree on, or `None` without an answer.
    pub async fn state(&self) -> Option<State> {
        let state = self.json("/-/hash").await?;
        Some(State {
            applied_index: state["applied_index"].as_u64()?,
            revision: state["revision"].as_u64()?,
            hash: state.get("hash")?.to_string(),
        })
    }
}
