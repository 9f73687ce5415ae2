//! A load client: each of `--clients` connections sends one request at a time
//! and waits for its answer.
//!
//! Only successful answers within the measured time count as operations, and
//! the latencies are theirs; everything else is listed by status. The load is
//! closed: while a server stalls, its clients send nothing, so the percentiles
//! understate what clients at a fixed rate would see.

use std::{
    collections::BTreeMap,
    error::Error,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::{net::TcpStream, time::timeout};

/// An answer that takes longer counts as none.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

/// Pause after a failed connection attempt.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that write the keys before a workload of reads.
const FILLING_CLIENTS: u64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Writes of random keys.
    Put,
    /// Linearizable reads of random keys, all of which are written first.
    Get,
    /// The same reads with ?consistency=stale.
    StaleGet,
}

/// Measures the operations a second and the latencies of a metastore cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// Client URLs; connections are spread over them evenly.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:12380")]
    endpoints: Vec<String>,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
    /// Measured time, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Time before that which is not measured, in seconds.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// What the clients do.
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Bytes of a value; they do not compress.
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Number of different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
}

/// splitmix64: cheap, and good enough to pick keys and fill values.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, length: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes.into()
    }
}

/// What became of requests.
#[derive(Debug, Default)]
struct Tally {
    /// Of each success, in microseconds.
    latencies: Vec<u32>,
    /// How many answers there were of each kind.
    answers: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, answer: Result<u16, &'static str>, success: bool, latency: Duration) {
        let kind = answer.map_or_else(str::to_owned, |status| status.to_string());
        *self.answers.entry(kind).or_default() += 1;
        if success {
            self.latencies.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (kind, count) in other.answers {
            *self.answers.entry(kind).or_default() += count;
        }
    }

    /// A percentile of the sorted latencies, in milliseconds.
    fn percentile(&self, percent: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let rank = (last as f64 * percent / 100.0).round() as usize;
        self.latencies.get(rank).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

/// One keep-alive connection, opened again after an error.
struct Connection {
    /// `host:port`.
    address: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    fn new(endpoint: &str) -> Self {
        let address = endpoint.trim_start_matches("http://").trim_end_matches('/');
        Self { address: address.to_owned(), sender: None }
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, Failure> {
        let open = self.sender.take().filter(|sender| !sender.is_closed());
        let sender = match open {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                // Its errors also reach whoever waits for an answer.
                tokio::spawn(connection);
                sender
            }
        };
        Ok(self.sender.insert(sender))
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Bytes) -> Result<u16, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .body(Full::new(body))?;
        let sender = self.sender().await?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok(status)
    }

    /// The status code, or why there is none.
    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<u16, &'static str> {
        match timeout(ANSWER_LIMIT, self.exchange(method, path, body)).await {
            Ok(Ok(status)) => Ok(status),
            failed => {
                self.sender = None;
                tokio::time::sleep(RECONNECT_PAUSE).await;
                Err(if failed.is_err() { "no answer in time" } else { "connection error" })
            }
        }
    }
}

fn key_path(key: u64) -> String {
    format!("/load/{key:012}")
}

/// One client's requests from `begin` to `end`; those before `begin` are sent
/// but not counted.
async fn client(arguments: Arc<Arguments>, number: u64, begin: Instant, end: Instant) -> Tally {
    let place = number as usize % arguments.endpoints.len();
    let mut connection = Connection::new(&arguments.endpoints[place]);
    let mut random = Random(number.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let mut tally = Tally::default();
    loop {
        let mut path = key_path(random.next() % arguments.keys);
        let (method, body, wanted) = match arguments.workload {
            Workload::Put => (Method::PUT, random.bytes(arguments.value_size), 204),
            Workload::Get => (Method::GET, Bytes::new(), 200),
            Workload::StaleGet => {
                path.push_str("?consistency=stale");
                (Method::GET, Bytes::new(), 200)
            }
        };
        let sent = Instant::now();
        let answer = connection.request(method, &path, body).await;
        let now = Instant::now();
        if now >= end {
            return tally;
        }
        if sent >= begin {
            tally.add(answer, answer == Ok(wanted), now - sent);
        }
    }
}

/// Writes every key once.
async fn fill(arguments: &Arc<Arguments>) -> Result<(), Failure> {
    let start = Instant::now();
    let writer = |number: u64| {
        let arguments = Arc::clone(arguments);
        tokio::spawn(async move {
            let place = number as usize % arguments.endpoints.len();
            let mut connection = Connection::new(&arguments.endpoints[place]);
            let mut random = Random(number);
            for key in (number..arguments.keys).step_by(FILLING_CLIENTS as usize) {
                let value = random.bytes(arguments.value_size);
                let answer = connection.request(Method::PUT, &key_path(key), value).await;
                if answer != Ok(204) {
                    return Err(format!("a PUT before the measurement failed: {answer:?}"));
                }
            }
            Ok(())
        })
    };
    let writers: Vec<_> = (0..FILLING_CLIENTS.min(arguments.keys)).map(writer).collect();
    for writer in writers {
        writer.await??;
    }
    println!("filled {} keys in {:.1} s", arguments.keys, start.elapsed().as_secs_f64());
    Ok(())
}

/// CPU time of this process so far, in seconds.
fn cpu_seconds() -> Result<f64, nix::Error> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1_000_000.0;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn print_report(arguments: &Arguments, tally: &mut Tally, cpu: f64) {
    tally.latencies.sort_unstable();
    let operations = tally.latencies.len();
    let rate = operations as f64 / arguments.seconds as f64;
    println!(
        "{:?}: {rate:.0} ops/s ({operations} in {} s; {} clients, {} endpoints, \
         {}-byte values, {} keys)",
        arguments.workload,
        arguments.seconds,
        arguments.clients,
        arguments.endpoints.len(),
        arguments.value_size,
        arguments.keys,
    );
    println!(
        "latency in ms: p50 {:.3}, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
        tally.percentile(50.0),
        tally.percentile(90.0),
        tally.percentile(99.0),
        tally.percentile(99.9),
        tally.percentile(100.0),
    );
    for (kind, count) in &tally.answers {
        println!("answers: {kind}: {count}");
    }
    println!("client CPU: {cpu:.2} s, warm-up included");
}

async fn run(arguments: Arc<Arguments>) -> Result<bool, Failure> {
    if arguments.workload != Workload::Put {
        fill(&arguments).await?;
    }
    let cpu_before = cpu_seconds()?;
    let begin = Instant::now() + Duration::from_secs(arguments.warm_up);
    let end = begin + Duration::from_secs(arguments.seconds);
    let start = |number| tokio::spawn(client(Arc::clone(&arguments), number, begin, end));
    let clients: Vec<_> = (0..arguments.clients).map(start).collect();
    let mut tally = Tally::default();
    for client in clients {
        tally.merge(client.await?);
    }
    print_report(&arguments, &mut tally, cpu_seconds()? - cpu_before);
    Ok(!tally.latencies.is_empty())
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arc::new(Arguments::parse())).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("load: no request succeeded; check --endpoints");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
