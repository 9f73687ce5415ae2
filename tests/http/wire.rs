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
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).expect("the answer's head is text");
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
        let mut answer = Answer { status, headers, body: Vec::new() };
        if matches!(status, 100..200 | 204 | 304) {
            assert_eq!(answer.header("content-length"), None, "{answer:?}");
        } else if !to_head {
            let length = usize::try_from(answer.number("content-length")).expect("fits");
            while self.read.len() < length {
                assert!(self.more().await, "the body ends early: {answer:?} {:?}", self.read);
            }
            answer.body = self.read.drain(..length).collect();
        }
        answer
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
