//! The command line: flags and environment, parsed into [`Args`] and checked
//! into a [`Config`].
//!
//! What is wrong in its syntax (an unknown option, a duration that is none)
//! ends in clap's own message and exit code 2. What parses, but contradicts
//! itself or cannot be run, is a [`Fatal`] like any other failed start.

mod bench;
mod snapshot;

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{
    ArgAction, Parser, Subcommand,
    builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser},
};

use crate::{
    config::{self, AutoCompaction, Config, LogFormat},
    error::Fatal,
};

pub use bench::BenchArgs;
pub use snapshot::{RestoreArgs, SaveArgs, SnapshotCommand, StatusArgs};

/// The shortest periodic retention: compacting more often helps nobody.
const MIN_RETENTION: Duration = Duration::from_secs(1);

/// The longest periodic retention: more is a slip of units.
const MAX_RETENTION: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

const AFTER_HELP: &str = "\
Durations are written 250ms, 5s, 10m or 1h; a bare number is milliseconds.
Sizes are written 512KiB, 1.5MiB or 2GiB; a bare number is bytes.

Every option can also come from the environment: METASTORE_DATA_DIR for
--data-dir, and so on. The command line wins.

After its first start a node takes its members from its data, whatever
--cluster and --join say.

One node:
  metastore
  curl -XPUT -d 'my value' http://127.0.0.1:12380/my-key
  curl http://127.0.0.1:12380/my-key

The second of three:
  metastore --id 2 --port 22380 --cluster \\
    http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379";

/// A replicated key-value store you can curl, on Raft and RocksDB.
#[derive(Debug, Clone, Parser)]
#[command(name = "metastore", version, max_term_width = 100, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do other than to run a node.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The flags of a node.
    #[command(flatten)]
    pub node: Args,
}

/// What the program does other than to run a node.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Load a cluster, of metastore or of etcd, and tell how fast it is.
    Bench(BenchArgs),
    /// Save, look into and restore snapshots.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// The flags of a node.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// This member's id, from 1; fixed once the node has data.
    #[arg(long, env = "METASTORE_ID", hide_env = true, value_name = "N", default_value_t = 1)]
    #[arg(help_heading = "Identity")]
    pub id: u64,

    /// Peer URLs of all members, separated by commas, this one's own included.
    /// An entry's id is its position, unless every entry is written id=URL.
    #[arg(long, env = "METASTORE_CLUSTER", hide_env = true, value_name = "URLS")]
    #[arg(default_value = "http://127.0.0.1:12379", help_heading = "Identity")]
    pub cluster: String,

    /// This node was added to a running cluster and has no data yet.
    // Takes a value so that `--join=false` wins over the environment.
    #[arg(long, env = "METASTORE_JOIN", hide_env = true, value_name = "BOOL", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, hide_possible_values = true)]
    #[arg(default_value = "false", default_missing_value = "true")]
    #[arg(value_parser = BoolishValueParser::new(), help_heading = "Identity")]
    pub join: bool,

    /// Name or address that clients connect to, for HTTP and gRPC.
    #[arg(
        long,
        env = "METASTORE_HOST",
        hide_env = true,
        value_name = "HOST",
        default_value = "127.0.0.1"
    )]
    #[arg(help_heading = "Listeners")]
    pub host: String,

    /// Port that clients connect to, for HTTP and gRPC.
    #[arg(
        long,
        env = "METASTORE_PORT",
        hide_env = true,
        value_name = "PORT",
        default_value_t = 12380
    )]
    #[arg(help_heading = "Listeners")]
    pub port: u16,

    /// Client URL that the other members give out for this one
    /// [default: http://{host}:{port}].
    #[arg(long, env = "METASTORE_ADVERTISE_CLIENT_URL", hide_env = true, value_name = "URL")]
    #[arg(help_heading = "Listeners")]
    pub advertise_client_url: Option<String>,

    /// Where data is kept, in a directory of this member's own, {data-dir}/{id};
    /// created if missing.
    #[arg(
        long,
        env = "METASTORE_DATA_DIR",
        hide_env = true,
        value_name = "DIR",
        default_value = "data"
    )]
    #[arg(help_heading = "Storage")]
    pub data_dir: PathBuf,

    /// Applied entries between two snapshots.
    #[arg(
        long,
        env = "METASTORE_SNAPSHOT_COUNT",
        hide_env = true,
        value_name = "N",
        default_value_t = 10_000
    )]
    #[arg(help_heading = "Storage")]
    pub snapshot_count: u64,

    /// How often the leader tells the others that it is alive.
    #[arg(long, env = "METASTORE_HEARTBEAT_INTERVAL", hide_env = true, value_name = "DURATION")]
    #[arg(default_value = "100ms", value_parser = parse_duration, help_heading = "Timing")]
    pub heartbeat_interval: Duration,

    /// How long a member waits for a sign of the leader before it calls an
    /// election; at least two heartbeat intervals.
    #[arg(long, env = "METASTORE_ELECTION_TIMEOUT", hide_env = true, value_name = "DURATION")]
    #[arg(default_value = "1000ms", value_parser = parse_duration, help_heading = "Timing")]
    pub election_timeout: Duration,

    /// How long a request may take before it is answered 503 or 504.
    #[arg(long, env = "METASTORE_REQUEST_TIMEOUT", hide_env = true, value_name = "DURATION")]
    #[arg(default_value = "5s", value_parser = parse_duration, help_heading = "Timing")]
    pub request_timeout: Duration,

    /// The largest request body; at most 16MiB.
    #[arg(long, env = "METASTORE_MAX_REQUEST_BYTES", hide_env = true, value_name = "SIZE")]
    #[arg(default_value = "1.5MiB", value_parser = parse_size, help_heading = "Limits")]
    pub max_request_bytes: u64,

    /// The largest answer of a range read that is not streamed; at most 1GiB.
    #[arg(long, env = "METASTORE_MAX_RESPONSE_BYTES", hide_env = true, value_name = "SIZE")]
    #[arg(default_value = "256MiB", value_parser = parse_size, help_heading = "Limits")]
    pub max_response_bytes: u64,

    /// Bytes of data beyond which this member raises the NOSPACE alarm, which
    /// makes all members refuse writes until it is disarmed; 0 = never.
    #[arg(long, env = "METASTORE_QUOTA_BACKEND_BYTES", hide_env = true, value_name = "SIZE")]
    #[arg(default_value = "0", value_parser = parse_size, help_heading = "Limits")]
    pub quota_backend_bytes: u64,

    /// How often the leader has the members' states compared, and keeps a member
    /// that came apart from serving; 0 = never. Each time every member reads all
    /// of its data once.
    #[arg(long, env = "METASTORE_CORRUPTION_CHECK_INTERVAL", hide_env = true)]
    #[arg(value_name = "DURATION", default_value = "12h", value_parser = parse_duration)]
    #[arg(help_heading = "Timing")]
    pub corruption_check_interval: Duration,

    /// Which history is forgotten by itself: what is older than the retention
    /// (periodic), or what is more revisions back than it says (revision).
    #[arg(long, env = "METASTORE_AUTO_COMPACTION_MODE", hide_env = true, value_name = "MODE")]
    #[arg(default_value = "periodic", value_parser = ["periodic", "revision"])]
    #[arg(help_heading = "History")]
    pub auto_compaction_mode: String,

    /// How much history is kept: a duration such as 30m, where a bare number
    /// is hours, or a number of revisions, according to the mode; 0 keeps all.
    #[arg(long, env = "METASTORE_AUTO_COMPACTION_RETENTION", hide_env = true)]
    #[arg(value_name = "RETENTION", default_value = "0", help_heading = "History")]
    pub auto_compaction_retention: String,

    /// How log lines look on standard error.
    #[arg(long, env = "METASTORE_LOG_FORMAT", hide_env = true, value_name = "FORMAT")]
    #[arg(default_value = "text", value_parser = log_format(), help_heading = "Logs")]
    pub log_format: LogFormat,

    /// The least severe lines that are logged.
    #[arg(
        long,
        env = "METASTORE_LOG_LEVEL",
        hide_env = true,
        value_name = "LEVEL",
        default_value = "info"
    )]
    #[arg(value_parser = log_level(), help_heading = "Logs")]
    pub log_level: slog::Level,
}

impl Args {
    /// The checked configuration.
    ///
    /// # Errors
    /// Values that contradict each other or that no node can run with; what
    /// only a first start reads is refused while the node has no data.
    pub fn into_config(self) -> Result<Config, Fatal> {
        let host = config::normalize_host(&self.host).map_err(|reason| {
            let what = format!("--host `{}` cannot be used: {reason}", self.host.escape_debug());
            Fatal::new(what, "name a host or an address, without a port")
        })?;
        let advertise_client_url = match self.advertise_client_url {
            None => config::http_url(&host, self.port),
            Some(url) => config::normalize_url(&url).map_err(|reason| {
                let url = url.escape_debug();
                let what = format!("--advertise-client-url `{url}` is not a URL: {reason}");
                Fatal::new(what, "write http://host:port")
            })?,
        };
        let config = Config {
            id: self.id,
            cluster: config::parse_cluster(&self.cluster)?,
            join: self.join,
            host,
            port: self.port,
            data_dir: self.data_dir,
            snapshot_count: self.snapshot_count,
            heartbeat_interval: self.heartbeat_interval,
            election_timeout: self.election_timeout,
            request_timeout: self.request_timeout,
            max_request_bytes: self.max_request_bytes,
            max_response_bytes: self.max_response_bytes,
            auto_compaction: auto_compaction(
                &self.auto_compaction_mode,
                &self.auto_compaction_retention,
            )?,
            quota_backend_bytes: self.quota_backend_bytes,
            corruption_check_interval: self.corruption_check_interval,
            advertise_client_url,
            log_format: self.log_format,
            log_level: self.log_level,
        };
        config.check()?;
        if !config.has_data() {
            config.check_first_start()?;
        }
        Ok(config)
    }
}

/// The retention means what it means in etcd: a bare number is hours in
/// periodic mode.
fn auto_compaction(mode: &str, retention: &str) -> Result<AutoCompaction, Fatal> {
    let wrong = |remedy: &str| {
        let retention = retention.escape_debug();
        let what =
            format!("--auto-compaction-retention `{retention}` does not suit the mode {mode}");
        Fatal::new(what, remedy)
    };
    if mode == "revision" {
        return match retention.parse::<u64>() {
            Ok(0) => Ok(AutoCompaction::Off),
            Ok(revisions) => Ok(AutoCompaction::Revision(revisions)),
            Err(_) => Err(wrong("write a number of revisions, such as 10000")),
        };
    }
    let remedy = "write a duration from 1s to ten years, such as 30m, or a number of hours";
    let period = match retention.parse::<u64>() {
        Ok(hours) => hours.checked_mul(3600).map(Duration::from_secs),
        Err(_) => parse_duration(retention).ok(),
    };
    match period {
        Some(Duration::ZERO) => Ok(AutoCompaction::Off),
        Some(period) if (MIN_RETENTION..=MAX_RETENTION).contains(&period) => {
            Ok(AutoCompaction::Periodic(period))
        }
        _ => Err(wrong(remedy)),
    }
}

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(["text", "json"]).map(|name| match name.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    })
}

fn log_level() -> impl TypedValueParser<Value = slog::Level> {
    PossibleValuesParser::new(["error", "warn", "info", "debug", "trace"])
        .try_map(|name| slog::Level::from_str(&name).map_err(|()| "no such level"))
}

/// A duration in whole milliseconds: `250ms`, `1.5s`, `10m`, `1h`, or a bare
/// number of milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("", 1)];
    quantity(text, &units)
        .map(Duration::from_millis)
        .ok_or_else(|| "write it like 250ms, 5s, 10m or 1h".into())
}

/// A size in bytes: `512KiB`, `1.5MiB`, `2GiB`, or a bare number of bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    quantity(text, &units).ok_or_else(|| "write it like 1048576, 512KiB, 1.5MiB or 2GiB".into())
}

/// A decimal number and its unit, as a whole multiple of the smallest one.
/// The first unit that ends the text is taken, the empty one last.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) =
        units.iter().find_map(|(name, size)| Some((text.strip_suffix(name)?, *size)))?;
    let (whole, fraction) = match number.split_once('.') {
        // More digits than this can never come out whole, and might overflow.
        Some((_, fraction)) if fraction.is_empty() || fraction.len() > 9 => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let scaled = u128::from(whole.parse::<u64>().ok()?) * scale + fraction;
    let product = scaled.checked_mul(u128::from(unit))?;
    if product % scale != 0 {
        return None;
    }
    u64::try_from(product / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, Fatal> {
        // A directory that nothing creates: these nodes have no data.
        let always = ["metastore", "--data-dir", "no-such-directory"];
        let args = Cli::try_parse_from(always.iter().chain(flags)).expect("syntax");
        args.node.into_config()
    }

    #[test]
    fn retention_is_read_as_etcd_reads_it() {
        let hours = |hours: u64| AutoCompaction::Periodic(Duration::from_secs(hours * 3600));
        for (flags, expected) in [
            (vec![], AutoCompaction::Off),
            (vec!["--auto-compaction-retention", "1"], hours(1)),
            (vec!["--auto-compaction-retention", "72h"], hours(72)),
            (
                vec!["--auto-compaction-retention", "5s"],
                AutoCompaction::Periodic(Duration::from_secs(5)),
            ),
            (vec!["--auto-compaction-mode", "revision"], AutoCompaction::Off),
            (
                vec!["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"],
                AutoCompaction::Revision(1000),
            ),
        ] {
            assert_eq!(config(&flags).expect("valid").auto_compaction, expected, "{flags:?}");
        }
        for flags in [
            ["--auto-compaction-mode=revision", "--auto-compaction-retention=1h"],
            ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1ms"],
            ["--auto-compaction-mode=periodic", "--auto-compaction-retention=18446744073709551615"],
            ["--auto-compaction-mode=periodic", "--auto-compaction-retention=soon"],
        ] {
            let fatal = config(&flags).expect_err("invalid");
            assert!(fatal.what.contains("--auto-compaction-retention"), "{fatal}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units_and_a_bare_number_is_milliseconds() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("1.5s", 1_500),
            ("0.25s", 250),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("100", 100),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "ms",
            "5 s",
            "5S",
            "-1s",
            "+1s",
            "1d",
            "1us",
            "1.",
            ".5s",
            "0.5ms",
            "1.5",
            "1e3",
            "1.2.3s",
            "5s5",
            "0x10",
            "999999999999999999999h",
            "18446744073709551615h",
            "1.0000000000s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_have_binary_units_and_a_bare_number_is_bytes() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("512KiB", 512 << 10),
            ("1.5MiB", 3 << 19),
            ("2GiB", 2 << 30),
            ("0.5KiB", 512),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1KB", "1MB", "1kib", "1B", "1.5", "0.3KiB", "1 MiB", "1TiB"] {
            assert!(parse_size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn without_flags_a_node_is_a_cluster_of_its_own() {
        let config = config(&[]).expect("the defaults");
        assert_eq!((config.id, config.port, config.host.as_str()), (1, 12380, "127.0.0.1"));
        assert_eq!(config.peer_url(), "http://127.0.0.1:12379");
        assert_eq!(config.advertise_client_url, "http://127.0.0.1:12380");
        assert_eq!(config.heartbeat_interval, Duration::from_millis(100));
        assert_eq!(config.election_ticks(), 10);
        assert_eq!(config.request_timeout, Duration::from_secs(5));
        assert_eq!(config.max_request_bytes, 3 << 19);
        assert_eq!(config.snapshot_count, 10_000);
        assert_eq!(config.corruption_check_interval, Duration::from_secs(12 * 3600));
        assert_eq!(config.log_level, slog::Level::Info);
        assert!(!config.join);
    }

    #[test]
    fn every_log_level_is_understood() {
        for (name, level) in [
            ("error", slog::Level::Error),
            ("warn", slog::Level::Warning),
            ("info", slog::Level::Info),
            ("debug", slog::Level::Debug),
            ("trace", slog::Level::Trace),
        ] {
            assert_eq!(config(&["--log-level", name]).expect(name).log_level, level);
        }
    }

    #[test]
    fn join_is_a_flag_that_can_also_be_turned_off() {
        let list = "http://a:1,http://b:1";
        assert!(config(&["--join", "--cluster", list]).expect("join").join);
        assert!(!config(&["--join=false", "--cluster", list]).expect("no join").join);
    }

    #[test]
    fn the_advertised_url_follows_the_listener_unless_given() {
        let derived = config(&["--host", "[::1]", "--port", "5"]).expect("an IPv6 host");
        assert_eq!(derived.host, "::1");
        assert_eq!(derived.advertise_client_url, "http://[::1]:5");
        let given = config(&["--advertise-client-url", "http://Store1:80/"]).expect("a URL");
        assert_eq!(given.advertise_client_url, "http://store1:80");
    }

    #[test]
    fn a_node_with_data_is_not_held_to_the_flags_of_its_first_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data_dir = dir.path().to_str().expect("UTF-8").to_owned();
        let flags = ["metastore", "--id", "4", "--data-dir", &data_dir];
        let args = Cli::try_parse_from(flags).expect("syntax").node;
        assert!(args.clone().into_config().is_err());
        std::fs::create_dir_all(dir.path().join("4/raft")).expect("a directory");
        assert_eq!(args.into_config().expect("stored members win").id, 4);
    }

    #[test]
    fn the_states_are_compared_seldom_or_never() {
        for (interval, seconds) in [("0", 0), ("1s", 1), ("12h", 43_200), ("744h", 2_678_400)] {
            let config = config(&["--corruption-check-interval", interval]).expect(interval);
            assert_eq!(config.corruption_check_interval, Duration::from_secs(seconds));
        }
        // Twelve milliseconds, and a month too many.
        for interval in ["12", "999ms", "745h"] {
            let fatal = config(&["--corruption-check-interval", interval]).expect_err(interval);
            assert!(fatal.what.contains("--corruption-check-interval is "), "{fatal}");
        }
    }

    #[test]
    fn timing_that_cannot_elect_a_leader_is_refused() {
        for (flags, reason) in [
            (["--election-timeout", "199ms"], "shorter than two heartbeat intervals"),
            (["--election-timeout", "1001s"], "longer than 10000 heartbeat intervals"),
            (["--election-timeout", "25h"], "--election-timeout is 90000s"),
            (["--heartbeat-interval", "0"], "--heartbeat-interval is 0"),
            (["--request-timeout", "0s"], "--request-timeout is 0"),
        ] {
            let text = config(&flags).expect_err(reason).to_string();
            assert!(text.contains(reason), "{text}");
        }
        let least = config(&["--election-timeout", "200ms"]).expect("two heartbeats");
        assert_eq!(least.election_ticks(), 2);
    }
}
