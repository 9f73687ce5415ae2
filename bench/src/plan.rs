//! What a run is to do, checked.

use std::{sync::Arc, thread::available_parallelism, time::Duration};

use crate::{
    Failure,
    endpoint::Endpoint,
    grpc,
    keys::Keys,
    pace::Length,
    plain,
    session::{Consistency, Session},
};

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Write every key once, in order.
    Fill,
    /// Write random keys.
    Put,
    /// Read random keys.
    Range,
    /// Read all keys under random prefixes.
    List,
    /// Write random keys if they are as last seen, and read them if not.
    Txn,
    /// Write some random keys and read others.
    Mixed,
    /// Write keys that are watched.
    Watch,
    /// Keep leases alive.
    LeaseKeepalive,
}

impl Workload {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Put => "put",
            Self::Range => "range",
            Self::List => "list",
            Self::Txn => "txn",
            Self::Mixed => "mixed",
            Self::Watch => "watch",
            Self::LeaseKeepalive => "lease-keepalive",
        }
    }

    /// Whether it reads keys that must be there.
    pub fn reads(self) -> bool {
        matches!(self, Self::Range | Self::List | Self::Txn | Self::Mixed)
    }
}

/// How clients ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// etcd's gRPC API.
    Grpc,
    /// metastore's HTTP API.
    Http,
}

impl Api {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// A run, as it was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the clients do.
    pub workload: Workload,
    /// Client URLs.
    pub endpoints: Vec<String>,
    /// How they ask.
    pub api: Api,
    /// Connections of gRPC; with HTTP each client has its own.
    pub connections: u64,
    /// Clients, each with one request at a time.
    pub clients: u64,
    /// Threads that the clients share; 0 for half of the processors.
    pub threads: usize,
    /// How many requests, instead of how long.
    pub total: Option<u64>,
    /// How long it is measured.
    pub duration: Duration,
    /// How long before that it is not.
    pub warm_up: Duration,
    /// Requests a second of all clients; as many as can be without.
    pub rate: Option<u64>,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Number of different keys.
    pub key_space: u64,
    /// What reads may show.
    pub consistency: Consistency,
    /// Keys of a list; a power of ten.
    pub list_keys: u64,
    /// Percent of the requests of a mixed load that are reads.
    pub read_percent: u32,
    /// Watchers.
    pub watchers: u64,
}

/// A run that can be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As it was asked for.
    pub options: Options,
    /// The keys.
    pub keys: Keys,
    /// How long it lasts.
    pub length: Length,
    /// Digits in which the keys of a list differ.
    pub list_digits: usize,
    /// Of which there is one at least.
    endpoints: Vec<Endpoint>,
}

impl Plan {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn new(mut options: Options) -> Result<Self, Failure> {
        let endpoints: Result<Vec<_>, _> =
            options.endpoints.iter().map(|url| Endpoint::parse(url)).collect();
        let endpoints = endpoints?;
        if endpoints.is_empty() {
            return Err(Failure::new("there is nobody to ask", "give --endpoints"));
        }
        for (name, value) in [
            ("connections", options.connections),
            ("clients", options.clients),
            ("watchers", options.watchers),
            ("rate", options.rate.unwrap_or(1)),
            ("total", options.total.unwrap_or(1)),
        ] {
            if value == 0 {
                let what = format!("--{name} is 0");
                return Err(Failure::new(what, "give at least 1, or leave it out"));
            }
        }
        let is_grpc_only = matches!(options.workload, Workload::Watch | Workload::LeaseKeepalive);
        if is_grpc_only && options.api == Api::Http {
            let what = format!("{} is measured over gRPC only", options.workload.name());
            return Err(Failure::new(what, "leave out --api http"));
        }
        let list_digits = options.list_keys.checked_ilog10().unwrap_or(0);
        if 10_u64.checked_pow(list_digits) != Some(options.list_keys)
            || (options.workload == Workload::List && options.list_keys > options.key_space)
        {
            return Err(Failure::new(
                format!("lists of {} keys cannot be made", options.list_keys),
                "give a power of ten that is not above --key-space as --list-keys",
            ));
        }
        let keys = Keys::new(options.key_space, options.key_size)?;
        let length = match (options.workload, options.total) {
            (Workload::Fill, _) => Length::Total(keys.count()),
            (_, Some(total)) => Length::Total(total),
            // Events and writes are counted from the first write on.
            (Workload::Watch, None) => {
                Length::Time { warm_up: Duration::ZERO, measured: options.duration }
            }
            (_, None) => Length::Time { warm_up: options.warm_up, measured: options.duration },
        };
        options.connections = options.connections.min(options.clients.max(options.watchers));
        if options.threads == 0 {
            options.threads = available_parallelism().map_or(1, |all| all.get().div_ceil(2));
        }
        Ok(Self { options, keys, length, list_digits: list_digits as usize, endpoints })
    }

    /// The plan to write every key once.
    pub fn to_fill(&self) -> Self {
        let workload = Workload::Fill;
        let options = Options { workload, rate: None, ..self.options.clone() };
        Self { options, length: Length::Total(self.keys.count()), ..self.clone() }
    }

    /// So many sessions, for each thread. Those of gRPC share connections, and
    /// connections are spread over the members.
    pub fn sessions(&self, count: u64) -> Vec<Vec<Session>> {
        let threads = self.options.threads.max(1);
        let mut sessions: Vec<Vec<Session>> = (0..threads).map(|_| Vec::new()).collect();
        let members = self.endpoints.iter().cycle();
        match self.options.api {
            Api::Grpc => {
                let connections = self.connections();
                let numbers = 0..connections.len();
                for (_, number) in (0..count).zip(numbers.cycle()) {
                    let session = Session::Grpc(grpc::Client::new(&connections[number]));
                    sessions[number % threads].push(session);
                }
            }
            Api::Http => {
                for (number, member) in (0..count as usize).zip(members) {
                    let session = Session::Plain(plain::Client::new(member.clone()));
                    sessions[number % threads].push(session);
                }
            }
        }
        sessions
    }

    /// One of the members.
    pub fn member(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    /// How many connections clients have.
    pub fn connections_used(&self) -> u64 {
        match self.options.api {
            Api::Grpc => self.options.connections,
            Api::Http => self.options.clients,
        }
    }

    /// The connections of gRPC.
    pub fn connections(&self) -> Vec<Arc<grpc::Connection>> {
        let members = self.endpoints.iter().cycle();
        let numbers = 0..self.options.connections;
        numbers.zip(members).map(|(_, member)| grpc::Connection::new(member.clone())).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a run is without options.
    pub fn options(workload: Workload) -> Options {
        Options {
            workload,
            endpoints: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
            api: Api::Grpc,
            connections: 8,
            clients: 64,
            threads: 2,
            total: None,
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            rate: None,
            key_size: 18,
            value_size: 256,
            key_space: 1_000,
            consistency: Consistency::Linearizable,
            list_keys: 100,
            read_percent: 90,
            watchers: 10,
        }
    }

    #[test]
    fn sessions_are_spread_evenly() {
        let plan = Plan::new(options(Workload::Put)).expect("a plan");
        let counts = |count| plan.sessions(count).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(64), [32, 32]);
        assert_eq!(counts(3), [2, 1]);
        let one = Options { clients: 1, watchers: 1, ..options(Workload::Put) };
        assert_eq!(Plan::new(one).expect("a plan").options.connections, 1);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_option_to_change() {
        let wrong = [
            ("--endpoints", Options { endpoints: vec![], ..options(Workload::Put) }),
            ("--clients", Options { clients: 0, ..options(Workload::Put) }),
            ("--rate", Options { rate: Some(0), ..options(Workload::Put) }),
            ("--api", Options { api: Api::Http, ..options(Workload::Watch) }),
            ("--list-keys", Options { list_keys: 99, ..options(Workload::List) }),
            ("--list-keys", Options { list_keys: 0, ..options(Workload::List) }),
            ("--list-keys", Options { list_keys: 10_000, ..options(Workload::List) }),
            ("--key-size", Options { key_size: 3, ..options(Workload::Put) }),
        ];
        for (option, options) in wrong {
            let failure = Plan::new(options).expect_err(option).to_string();
            assert!(failure.contains(option), "{failure}");
        }
    }
}
