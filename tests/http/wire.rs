//! A client that sends exactly the bytes it is given: nothing is normalised,
//! escaped, added or retried.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Turns a hang into a failure.
const DEADLINE: Duration = Duration::from_secs(20);

/// One answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header, which must not be there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> u64 {
        let value = self.header(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("{name} is no number: {self:?}"))
    }

    /// The body as lines of JSON, all of them ended.
    pub fn lines(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).expect("JSON is UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end: {text:?}");
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        text.lines().map(parse).collect()
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{:?} {text}", self.headers);
        self
    }

    /// Checks that it is an error of the documented form.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        let answer = self.is(status);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "not one line: {text:?}");
        let json = answer.json();
        assert_eq!(json["error"]["code"], code, "{text}");
        assert!(json["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{text}");
        assert_eq!(json["error"].as_object().map(serde_json::Map::len), Some(2), "{text}");
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(1), "{text}");
        answer
    }
}

/// The client port of a node.
#[derive(Debug, Clone, Copy)]
pub struct Port(pub u16);

impl Port {
    pub async fn connect(self) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", self.0)).await.expect("connect");
        stream.set_nodelay(true).expect("send at once");
        Connection { stream, read: Vec::new() }
    }

    /// One request on a connection of its own. The target stands on the
    /// request line as it is.
    pub async fn send(
        self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut connection = self.connect().await;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || matches!(method, "PUT" | "POST") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        connection.write(head.as_bytes()).await;
        connection.write(b"\r\n").await;
        connection.write(body).await;
        let answer = connection.answer(method == "HEAD").await;
        let rest = connection.rest().await;
        assert!(rest.is_empty(), "after the answer {answer:?} came {rest:?}");
        answer
    }

    pub async fn get(self, target: &str) -> Answer {
        self.send("GET", target, &[], b"").await
    }

    pub async fn put(self, target: &str, value: impl AsRef<[u8]>) -> Answer {
        self.send("PUT", target, &[], value.as_ref()).await
    }

    pub async fn post(self, target: &str, body: &str) -> Answer {
        self.send("POST", target, &[], body.as_bytes()).await
    }

    pub async fn delete(self, target: &str) -> Answer {
        self.send("DELETE", target, &[], b"").await
    }

    /// Sends bytes that need not be HTTP; what came back until the end.
    pub async fn exchange(self, bytes: &[u8]) -> String {
        let mut connection = self.connect().await;
        connection.write(bytes).await;
        String::from_utf8_lossy(&connection.rest().await).into_owned()
    }
}

/// An answer without its body.
fn head(bytes: &[u8]) -> Answer {
    let head = std::str::from_utf8(bytes).expect("the answer's head is text");
    let mut lines = head.lines();
    let status_line = lines.next().expect("a status line");
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .unwrap_or_else(|| panic!("not a status line: {status_line}"));
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: Vec::new() }
}

pub struct Connection {
    stream: TcpStream,
    /// What was read and not yet taken.
    read: Vec<u8>,
}

impl Connection {
    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("in time").expect("write");
    }

    /// Says that nothing more comes.
    pub async fn end(&mut self) {
        self.stream.shutdown().await.expect("end the stream");
    }

    /// The next answer; one to HEAD has no body whatever its length says.
    pub async fn answer(&mut self, to_head: bool) -> Answer {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more().await, "no answer but {:?}", String::from_utf8_lossy(&self.read));
        };
        let mut answer = head(&self.read[..end]);
        self.read.drain(..end);
        if matches!(answer.status, 100..200 | 204 | 304) {
            assert_eq!(answer.header("content-length"), None, "{answer:?}");
        } else if !to_head {
            if answer.header("transfer-encoding") == Some("chunked") {
                answer.body = self.chunks().await.expect("a body that ends");
                return answer;
            }
            let length = usize::try_from(answer.number("content-length")).expect("fits");
            while self.read.len() < length {
                assert!(self.more().await, "the body ends early: {answer:?} {:?}", self.read);
            }
            answer.body = self.read.drain(..length).collect();
        }
        answer
    }

    /// The head of an answer whose body comes in chunks.
    pub async fn streamed(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more().await, "no answer but {:?}", String::from_utf8_lossy(&self.read));
        };
        let mut answer = head(&self.read[..end]);
        self.read.drain(..end);
        if answer.header("transfer-encoding") != Some("chunked") {
            let length = usize::try_from(answer.number("content-length")).expect("fits");
            while self.read.len() < length {
                assert!(self.more().await, "the body ends early: {answer:?}");
            }
            answer.body = self.read.drain(..length).collect();
        }
        answer
    }

    /// The next chunk, empty at the end of the body; `None` when the
    /// connection ends first.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if !self.more().await {
                return None;
            }
        };
        let length = std::str::from_utf8(&self.read[..end]).expect("a chunk's length is text");
        let length = usize::from_str_radix(length, 16).expect("a chunk's length is a number");
        while self.read.len() < end + 2 + length + 2 {
            if !self.more().await {
                return None;
            }
        }
        let chunk = self.read[end + 2..end + 2 + length].to_vec();
        self.read.drain(..end + 2 + length + 2);
        Some(chunk)
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            match self.chunk().await? {
                chunk if chunk.is_empty() => return Some(body),
                chunk => body.extend_from_slice(&chunk),
            }
        }
    }

    /// Everything that comes until the server closes the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    async fn more(&mut self) -> bool {
        let read = timeout(DEADLINE, self.stream.read_buf(&mut self.read)).await;
        // A reset is an end, too.
        read.expect("the server answers or closes in time").unwrap_or(0) > 0
    }
}
