//! The validated configuration of a node.
//!
//! The command line builds it from flags and environment; from here on
//! nothing reads a raw flag. Each component takes the few values it needs.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use crate::error::Fatal;

/// Ticks of raft's logical clock between heartbeats.
pub const HEARTBEAT_TICKS: usize = 1;

/// The largest `--max-request-bytes`, so that members with different limits
/// still accept each other's entries.
pub const MAX_REQUEST_BYTES_CEILING: u64 = 16 << 20;

/// The largest `--max-response-bytes`: several may be in memory at once.
pub const MAX_RESPONSE_BYTES_CEILING: u64 = 1 << 30;

/// The most heartbeat intervals an election timeout may last: more would be a
/// slip of units, and a follower would wait for ever.
pub const MAX_ELECTION_TICKS: u32 = 10_000;

/// The longest duration a timing option takes: adding it to a clock cannot overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest `--corruption-check-interval`: less would be a slip of units.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest `--corruption-check-interval`, 31 days.
pub const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// One entry of `--cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEntry {
    /// The member's id; its position in the list, from 1, unless given.
    pub id: u64,
    /// The member's peer URL, normalised: `http://host:port`, no trailing slash.
    pub url: String,
}

/// Which history is forgotten by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// What is more than so many revisions back.
    Revision(u64),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a node was told, checked for contradictions.
#[derive(Debug, Clone)]
pub struct Config {
    /// This member's id, at least 1.
    pub id: u64,
    /// The members named for the first start, this one included; sorted by id.
    pub cluster: Vec<ClusterEntry>,
    /// Whether this member was added to a running cluster.
    pub join: bool,
    /// Host part of the client listener: a name or an address, an IPv6 one
    /// without brackets. Bind `(host, port)`, not their text joined by a colon.
    pub host: String,
    /// Port of the client listener.
    pub port: u16,
    /// The parent of the node's own directory.
    pub data_dir: PathBuf,
    /// Applied entries between snapshots, at least 1.
    pub snapshot_count: u64,
    /// One tick of raft's logical clock.
    pub heartbeat_interval: Duration,
    /// Time without a heartbeat after which a follower campaigns; a whole
    /// number of heartbeat intervals is used, at least two.
    pub election_timeout: Duration,
    /// How long a request may take before it is answered 503 or 504.
    pub request_timeout: Duration,
    /// The largest request body, in bytes.
    pub max_request_bytes: u64,
    /// The largest answer that is not streamed, in bytes.
    pub max_response_bytes: u64,
    /// Which history the leader has forgotten by itself.
    pub auto_compaction: AutoCompaction,
    /// Bytes of the state database beyond which this member raises the
    /// NOSPACE alarm; 0 = never.
    pub quota_backend_bytes: u64,
    /// How often the members' states are compared while this member leads; zero
    /// = never.
    pub corruption_check_interval: Duration,
    /// The client URL other members name for this one.
    pub advertise_client_url: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The least severe level that is logged.
    pub log_level: slog::Level,
}

impl Config {
    /// This member's own peer URL for the first start; empty when `--cluster`
    /// does not list it, which [`check_first_start`](Self::check_first_start)
    /// refuses.
    pub fn peer_url(&self) -> &str {
        self.cluster.iter().find(|entry| entry.id == self.id).map_or("", |entry| entry.url.as_str())
    }

    /// The node's own directory, `{data-dir}/{id}`.
    pub fn node_dir(&self) -> PathBuf {
        self.data_dir.join(self.id.to_string())
    }

    /// Ticks of raft's logical clock in an election timeout.
    pub fn election_ticks(&self) -> usize {
        let ticks = self.election_timeout.as_nanos() / self.heartbeat_interval.as_nanos().max(1);
        let most = MAX_ELECTION_TICKS as usize;
        usize::try_from(ticks).unwrap_or(most).clamp(2 * HEARTBEAT_TICKS, most)
    }

    /// Refuses values that contradict each other or that no node can run with.
    ///
    /// What only the first start reads is not looked at here: see
    /// [`check_first_start`](Self::check_first_start).
    pub fn check(&self) -> Result<(), Fatal> {
        if self.id == 0 {
            return Err(Fatal::new("--id is 0", "member ids start at 1"));
        }
        if self.port == 0 {
            return Err(Fatal::new(
                "--port is 0",
                "name the port that clients shall use, 1 to 65535",
            ));
        }
        if self.snapshot_count == 0 {
            return Err(Fatal::new(
                "--snapshot-count is 0",
                "use at least 1; the default is 10000",
            ));
        }
        self.check_limits()?;
        self.check_check_interval()?;
        self.check_timing()
    }

    fn check_limits(&self) -> Result<(), Fatal> {
        let size = self.max_request_bytes;
        if (1..=MAX_REQUEST_BYTES_CEILING).contains(&size) {
            return self.check_max_response_bytes();
        }
        Err(Fatal::new(
            format!("--max-request-bytes is {size} bytes"),
            "use 1 byte to 16MiB; the default is 1.5MiB",
        ))
    }

    /// An answer must at least hold the largest value.
    fn check_max_response_bytes(&self) -> Result<(), Fatal> {
        let (size, least) = (self.max_response_bytes, 2 * self.max_request_bytes);
        if size >= least && size <= MAX_RESPONSE_BYTES_CEILING {
            return Ok(());
        }
        Err(Fatal::new(
            format!("--max-response-bytes is {size} bytes"),
            format!("use twice --max-request-bytes ({least}) to 1GiB; the default is 256MiB"),
        ))
    }

    fn check_check_interval(&self) -> Result<(), Fatal> {
        let interval = self.corruption_check_interval;
        if interval.is_zero() || (MIN_CHECK_INTERVAL..=MAX_CHECK_INTERVAL).contains(&interval) {
            return Ok(());
        }
        Err(Fatal::new(
            format!("--corruption-check-interval is {interval:?}"),
            "use 1s to 744h, or 0 to compare nothing; the default is 12h",
        ))
    }

    fn check_timing(&self) -> Result<(), Fatal> {
        let durations = [
            ("--heartbeat-interval", self.heartbeat_interval),
            ("--election-timeout", self.election_timeout),
            ("--request-timeout", self.request_timeout),
        ];
        for (option, duration) in durations {
            if duration.is_zero() {
                return Err(Fatal::new(format!("{option} is 0"), "use at least 1ms"));
            }
            if duration > MAX_DURATION {
                let what = format!("{option} is {duration:?}");
                return Err(Fatal::new(what, "use at most 24h"));
            }
        }
        let (heartbeat, election) = (self.heartbeat_interval, self.election_timeout);
        if election < heartbeat * 2 {
            return Err(Fatal::new(
                format!(
                    "--election-timeout {election:?} is shorter than two heartbeat intervals of \
                     {heartbeat:?}"
                ),
                "make it about ten times --heartbeat-interval",
            ));
        }
        if election > heartbeat * MAX_ELECTION_TICKS {
            return Err(Fatal::new(
                format!(
                    "--election-timeout {election:?} is longer than {MAX_ELECTION_TICKS} heartbeat \
                     intervals of {heartbeat:?}"
                ),
                "make it about ten times --heartbeat-interval",
            ));
        }
        Ok(())
    }

    /// Whether this member has stored something before: then its members and
    /// its own URL come from its data, whatever the flags say.
    pub fn has_data(&self) -> bool {
        self.node_dir().join("raft").exists()
    }

    /// Refuses flags that a node without data cannot start from; one with data
    /// does not read them any more.
    pub fn check_first_start(&self) -> Result<(), Fatal> {
        let own = self.peer_url();
        if own.is_empty() {
            let ids: Vec<_> = self.cluster.iter().map(|entry| entry.id.to_string()).collect();
            return Err(Fatal::new(
                format!("--id {} is not in --cluster, which lists {}", self.id, ids.join(", ")),
                "use one of these ids, or add this member's own URL to the list",
            ));
        }
        if self.join && self.cluster.len() == 1 {
            return Err(Fatal::new(
                "--join is given, but --cluster lists no other member",
                "list the running members and this one, as id=url",
            ));
        }
        if own == http_url(&self.host, self.port) {
            return Err(Fatal::new(
                format!("{own} is both the peer URL and the client listener"),
                "choose another --port, or another port in --cluster",
            ));
        }
        Ok(())
    }
}

/// The members in a `--cluster` list, sorted by id.
///
/// Entries are URLs, whose position from 1 is the id, or all `id=url`. URLs
/// come out as [`normalize_url`] writes them.
///
/// # Errors
/// An empty list or entry, the two forms mixed, an id that is not a positive
/// integer, a malformed URL, an id or a URL that occurs twice.
pub fn parse_cluster(list: &str) -> Result<Vec<ClusterEntry>, Fatal> {
    let mut entries = Vec::new();
    let mut named = 0_usize;
    for (text, position) in list.split(',').map(str::trim).zip(1_u64..) {
        if text.is_empty() {
            return Err(Fatal::new(
                format!("entry {position} of --cluster is empty"),
                "write one peer URL per member, separated by single commas",
            ));
        }
        // Not the `=` of a query, which is no part of a peer URL anyway.
        let (id, url) = match text.split_once('=') {
            Some((id, url)) if !id.contains("://") => {
                named += 1;
                (parse_member_id(id)?, url)
            }
            _ => (position, text),
        };
        let url = normalize_url(url).map_err(|reason| {
            Fatal::new(
                format!("`{}` in --cluster is not a peer URL: {reason}", url.escape_debug()),
                "write http://host:port",
            )
        })?;
        entries.push(ClusterEntry { id, url });
    }
    if named != 0 && named != entries.len() {
        return Err(Fatal::new(
            "--cluster mixes plain URLs and id=url entries",
            "give every entry an id, or none",
        ));
    }
    refuse_duplicates(&entries)?;
    entries.sort_by_key(|entry| entry.id);
    Ok(entries)
}

fn parse_member_id(text: &str) -> Result<u64, Fatal> {
    // `parse` alone would also take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(id) if digits && id != 0 => Ok(id),
        _ => Err(Fatal::new(
            format!("`{}` in --cluster is not a member id", text.escape_debug()),
            "write id=url with an id of 1 or more",
        )),
    }
}

fn refuse_duplicates(entries: &[ClusterEntry]) -> Result<(), Fatal> {
    let (mut ids, mut urls) = (BTreeMap::new(), BTreeMap::new());
    for ClusterEntry { id, url } in entries {
        if ids.insert(id, url).is_some() {
            return Err(Fatal::new(
                format!("--cluster lists member {id} twice"),
                "give every member an id of its own",
            ));
        }
        if let Some(other) = urls.insert(url, id) {
            return Err(Fatal::new(
                format!("--cluster lists {url} twice, for members {other} and {id}"),
                "give every member a URL of its own",
            ));
        }
    }
    Ok(())
}

/// The one spelling of a member's URL: `http://host:port`, the host in lower
/// case, the port written out, no trailing slash.
///
/// # Errors
/// Why the text is not such a URL, to be put behind a colon.
pub fn normalize_url(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or("it does not begin with http://")?;
    if scheme.eq_ignore_ascii_case("https") {
        return Err("https is not spoken yet, only http".into());
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err("it does not begin with http://".into());
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("it has a path, query or fragment".into());
    }
    if authority.contains('@') {
        return Err("it names a user".into());
    }
    // The last colon begins the port, unless it is inside an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, parse_port(port)?),
        _ => (authority, 80),
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err("an IPv6 address needs brackets, as in http://[::1]:12379".into());
    }
    Ok(http_url(&normalize_host(host)?, port))
}

fn parse_port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err("its port is not a number from 1 to 65535".into()),
    }
}

/// A host name in lower case, or an address in its usual form; IPv6 addresses
/// are taken with and without brackets, and come out without.
///
/// # Errors
/// Why the text is not a host, to be put behind a colon.
pub fn normalize_host(text: &str) -> Result<String, String> {
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if bracketed.is_some() || text.contains(':') {
        return match bracketed.unwrap_or(text).parse::<Ipv6Addr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err("its host is not an IPv6 address".into()),
        };
    }
    if text.is_empty() {
        return Err("it has no host".into());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err("its host is not an IPv4 address".into()),
        };
    }
    // Underscores are not in the standard, but in the names of many containers.
    let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label =
        |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(name_byte);
    if text.len() > 253 || !text.split('.').all(label) {
        return Err("its host is not a name or an address".into());
    }
    Ok(text.to_ascii_lowercase())
}

/// The URL of a host, as [`normalize_host`] writes it, and a port.
pub fn http_url(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("http://[{host}]:{port}")
    } else {
        format!("http://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids_and_urls(list: &str) -> Vec<(u64, String)> {
        let entries = parse_cluster(list).expect(list);
        entries.into_iter().map(|entry| (entry.id, entry.url)).collect()
    }

    fn refusal(list: &str) -> String {
        parse_cluster(list).expect_err(list).to_string()
    }

    #[test]
    fn a_plain_list_numbers_its_members_from_one() {
        let expected = [(1, "http://a:1".to_owned()), (2, "http://b:2".to_owned())];
        assert_eq!(ids_and_urls("http://a:1, HTTP://B:2/"), expected);
    }

    #[test]
    fn a_named_list_keeps_its_ids_and_is_sorted_by_them() {
        let expected = [(2, "http://b:2".to_owned()), (7, "http://a:1".to_owned())];
        assert_eq!(ids_and_urls("7=http://a:1,2=http://b:2"), expected);
    }

    #[test]
    fn a_list_that_contradicts_itself_is_refused_with_the_reason() {
        for (list, reason) in [
            ("", "entry 1 of --cluster is empty"),
            ("http://a:1,,http://b:2", "entry 2 of --cluster is empty"),
            ("http://a:1,", "entry 2 of --cluster is empty"),
            ("1=http://a:1,http://b:2", "mixes"),
            ("http://a:1,2=http://b:2", "mixes"),
            ("http://a:1,http://A:1/", "lists http://a:1 twice, for members 1 and 2"),
            ("3=http://a:1,3=http://b:2", "lists member 3 twice"),
            ("0=http://a:1", "`0` in --cluster is not a member id"),
            ("x=http://a:1", "`x` in --cluster is not a member id"),
            ("+1=http://a:1", "`+1` in --cluster is not a member id"),
            ("=http://a:1", "`` in --cluster is not a member id"),
            ("18446744073709551616=http://a:1", "is not a member id"),
            ("a:1", "`a:1` in --cluster is not a peer URL"),
            ("http://a:1\n\x1b[31m", r"`http://a:1\n\u{1b}[31m` in --cluster"),
        ] {
            let text = refusal(list);
            assert!(text.contains(reason), "{list:?}: {text}");
            assert!(text.contains("; "), "{list:?} has no remedy: {text}");
        }
    }

    #[test]
    fn urls_have_one_spelling() {
        for (text, expected) in [
            ("http://127.0.0.1:12379", "http://127.0.0.1:12379"),
            ("http://Node-1.Example.com:1/", "http://node-1.example.com:1"),
            ("http://a", "http://a:80"),
            ("http://store_1:0080", "http://store_1:80"),
            ("http://[0:0::1]:5", "http://[::1]:5"),
            ("http://[::1]", "http://[::1]:80"),
        ] {
            assert_eq!(normalize_url(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn malformed_urls_are_refused() {
        for text in [
            "",
            "a",
            "a:1",
            "http:/a:1",
            "ftp://a:1",
            "https://a:1",
            "http://",
            "http://:1",
            "http:///",
            "http://a:",
            "http://a:0",
            "http://a:+1",
            "http://a:65536",
            "http://a:1:2",
            "http://a:1/x",
            "http://a:1//",
            "http://a:1?x=1",
            "http://a:1#x",
            "http://me@a:1",
            "http://::1:5",
            "http://[::1",
            "http://[::1]5",
            "http://[::g]:5",
            "http://1.2.3:5",
            "http://1.2.3.256:5",
            "http://a..b:1",
            "http://a b:1",
            "http://a%20b:1",
            "http://ä:1",
        ] {
            assert!(normalize_url(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn hosts_are_taken_with_and_without_brackets() {
        assert_eq!(normalize_host("::1").as_deref(), Ok("::1"));
        assert_eq!(normalize_host("[::1]").as_deref(), Ok("::1"));
        assert_eq!(normalize_host("0.0.0.0").as_deref(), Ok("0.0.0.0"));
        assert!(normalize_host("127.0.0.1:80").is_err());
        assert!(normalize_host("").is_err());
        assert_eq!(http_url("::1", 80), "http://[::1]:80");
    }
}
