//! Plain HTTP, on a keep-alive connection of each client's own.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use crate::{endpoint::Endpoint, failure::Trouble};

/// The revision at which a write happened.
pub const REVISION: HeaderName = HeaderName::from_static("x-metastore-revision");

/// One client.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    requests: Option<SendRequest<Full<Bytes>>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub fields: HeaderMap,
    /// Its content.
    pub content: Bytes,
}

impl Answer {
    /// A revision that a field gives, perhaps in quotes.
    ///
    /// # Errors
    /// When it does not.
    pub fn revision(&self, name: &HeaderName) -> Result<u64, Trouble> {
        let text = self.fields.get(name).and_then(|value| value.to_str().ok());
        let number = text.and_then(|text| text.trim_matches('"').parse().ok());
        number.ok_or_else(|| Trouble::broken(format!("an answer without {name}")))
    }

    /// What it is when it should have been another.
    pub fn refused(&self) -> Trouble {
        Trouble::Refused(format!("HTTP status {}", self.status.as_u16()))
    }
}

impl Client {
    /// One of this member.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, requests: None }
    }

    /// Sends a request and takes its answer.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        condition: Option<(HeaderName, String)>,
        content: Bytes,
    ) -> Result<Answer, Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.endpoint.authority());
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(content)).map_err(Trouble::broken)?;
        let answer = self.send(request).await;
        if answer.is_err() {
            self.requests = None;
        }
        answer
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Trouble> {
        let open = self.requests.take().filter(|requests| !requests.is_closed());
        let requests = match open {
            Some(requests) => self.requests.insert(requests),
            None => {
                let stream = TokioIo::new(self.endpoint.connect().await?);
                let (requests, connection) = handshake(stream).await.map_err(Trouble::broken)?;
                // Whoever waits for an answer hears how it ended.
                tokio::spawn(connection);
                self.requests.insert(requests)
            }
        };
        requests.ready().await.map_err(Trouble::broken)?;
        let answer = requests.send_request(request).await.map_err(Trouble::broken)?;
        let (head, body) = answer.into_parts();
        let content = body.collect().await.map_err(Trouble::broken)?.to_bytes();
        Ok(Answer { status: head.status, fields: head.headers, content })
    }
}
