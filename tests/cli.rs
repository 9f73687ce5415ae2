//! The built program as a shell sees it: help, exit codes, and the one line
//! that a start which fails leaves on standard error.

use std::process::{Command, Output};

/// Runs the program in an empty directory, without environment variables of its
/// own but those given.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_metastore"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("METASTORE_") {
            command.env_remove(name);
        }
    }
    let output = command
        .current_dir(dir.path())
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("the program starts");
    let left = std::fs::read_dir(dir.path()).expect("the directory").count();
    assert_eq!(left, 0, "{arguments:?} left files behind");
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Asserts exit code 1 and exactly one line, `metastore: what; what to do`.
fn assert_refused(arguments: &[&str], environment: &[(&str, &str)], reason: &str) {
    let output = run(arguments, environment);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert_eq!(text.matches('\n').count(), 1, "{arguments:?}: {text:?}");
    assert!(text.starts_with("metastore: "), "{arguments:?}: {text}");
    assert!(text.contains(reason), "{arguments:?} does not say {reason:?}: {text}");
    assert!(text.contains("; "), "{arguments:?} does not say what to do: {text}");
    assert_eq!(stdout(&output), "");
}

/// Every option, its default as `--help` shows it, and a value it refuses.
const OPTIONS: [(&str, &str, &str); 15] = [
    ("id", "1", "0"),
    ("cluster", "http://127.0.0.1:12379", "a:1"),
    ("join", "false", "perhaps"),
    ("host", "127.0.0.1", "a:1"),
    ("port", "12380", "0"),
    ("advertise-client-url", "http://{host}:{port}", "a:1"),
    ("data-dir", "data", ""),
    ("snapshot-count", "10000", "0"),
    ("heartbeat-interval", "100ms", "0"),
    ("election-timeout", "1000ms", "0"),
    ("request-timeout", "5s", "0"),
    ("corruption-check-interval", "12h", "12"),
    ("max-request-bytes", "1.5MiB", "0"),
    ("log-format", "text", "xml"),
    ("log-level", "info", "loud"),
];

#[test]
fn help_lists_every_option_under_a_heading_with_its_default() {
    let output = run(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for (option, default, _) in OPTIONS {
        // An option's text runs from the line that it begins to the next such
        // line; joined, because where it is wrapped depends on the terminal.
        let mut lines = text.lines().map(str::trim_start);
        let first = lines
            .find(|line| {
                let rest = line.strip_prefix("--").and_then(|line| line.strip_prefix(option));
                rest.is_some_and(|rest| rest.starts_with([' ', '[']))
            })
            .unwrap_or_else(|| panic!("--help does not list --{option}"));
        let rest = lines.take_while(|line| !line.starts_with('-')).collect::<Vec<_>>().join(" ");
        let entry = format!("{first} {rest}");
        assert!(entry.contains(&format!("[default: {default}]")), "{entry}");
    }
    for heading in ["Identity:", "Listeners:", "Storage:", "Timing:", "Limits:", "Logs:"] {
        assert!(text.lines().any(|line| line == heading), "no heading {heading}");
    }
}

#[test]
fn version_is_the_crates() {
    let output = run(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), concat!("metastore ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn syntax_that_no_option_takes_exits_2() {
    for arguments in [
        &["--no-such-option"][..],
        &["operand"],
        &["--id"],
        &["--id", "one"],
        &["--id", "-1"],
        &["--id", "1", "--id", "1"],
        &["--port", "65536"],
        &["--port", "http"],
        &["--join=perhaps"],
        &["--join", "true"],
        &["--snapshot-count", "1.5"],
        &["--heartbeat-interval", "100 ms"],
        &["--election-timeout", "1d"],
        &["--request-timeout", "-5s"],
        &["--max-request-bytes", "1MB"],
        &["--log-format", "xml"],
        &["--log-level", "loud"],
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn values_that_no_node_can_run_with_exit_1_with_one_line() {
    for (arguments, reason) in [
        (["--id", "0"], "--id is 0"),
        (["--port", "0"], "--port is 0"),
        (["--host", "a:1"], "--host `a:1` cannot be used"),
        (["--host", ""], "--host `` cannot be used"),
        (["--snapshot-count", "0"], "--snapshot-count is 0"),
        (["--heartbeat-interval", "0ms"], "--heartbeat-interval is 0"),
        (["--request-timeout", "0"], "--request-timeout is 0"),
        (["--election-timeout", "150ms"], "shorter than two heartbeat intervals"),
        (["--heartbeat-interval", "501ms"], "shorter than two heartbeat intervals"),
        (["--max-request-bytes", "16777217"], "--max-request-bytes is 16777217 bytes"),
        (["--max-request-bytes", "0"], "--max-request-bytes is 0 bytes"),
        (["--advertise-client-url", "ftp://a:1"], "--advertise-client-url `ftp://a:1`"),
        (["--port", "12379"], "is both the peer URL and the client listener"),
    ] {
        assert_refused(&arguments, &[], reason);
    }
}

#[test]
fn clusters_that_cannot_be_formed_exit_1_with_one_line() {
    for (list, reason) in [
        ("", "entry 1 of --cluster is empty"),
        ("http://a:1,", "entry 2 of --cluster is empty"),
        ("a:1", "`a:1` in --cluster is not a peer URL"),
        ("https://a:1", "https is not spoken yet"),
        ("http://", "it has no host"),
        ("http://a:port", "its port is not a number"),
        ("http://a:1/path", "it has a path, query or fragment"),
        ("http://a:1?x", "it has a path, query or fragment"),
        ("http://me@a:1", "it names a user"),
        ("http://a:1,http://A:1", "--cluster lists http://a:1 twice"),
        ("1=http://a:1,1=http://b:1", "--cluster lists member 1 twice"),
        ("1=http://a:1,http://b:1", "--cluster mixes"),
        ("0=http://a:1", "`0` in --cluster is not a member id"),
        ("one=http://a:1", "`one` in --cluster is not a member id"),
        ("http://a:1\nsecond line", r"`http://a:1\nsecond line` in --cluster"),
    ] {
        assert_refused(&["--cluster", list], &[], reason);
    }
}

#[test]
fn an_id_outside_the_cluster_exits_1_with_the_ids_it_may_be() {
    let plain = ["--id", "3", "--cluster", "http://a:1,http://b:1"];
    assert_refused(&plain, &[], "--id 3 is not in --cluster, which lists 1, 2;");
    let named = ["--id", "1", "--cluster", "7=http://a:1,9=http://b:1"];
    assert_refused(&named, &[], "--id 1 is not in --cluster, which lists 7, 9;");
    assert_refused(&["--id", "2"], &[], "--id 2 is not in --cluster, which lists 1;");
}

#[test]
fn joining_a_cluster_of_no_others_exits_1() {
    assert_refused(&["--join"], &[], "--cluster lists no other member");
}

#[test]
fn every_option_is_read_from_its_environment_variable() {
    for (option, _, refused) in OPTIONS {
        let variable = format!("METASTORE_{}", option.to_uppercase().replace('-', "_"));
        let output = run(&[], &[(&variable, refused)]);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{variable}: {:?}", output.status);
        let text = stderr(&output);
        assert!(text.contains(&format!("--{option}")), "{variable}: {text}");
    }
}

#[test]
fn flags_win_over_environment_variables() {
    assert_refused(&["--id", "9"], &[("METASTORE_ID", "8")], "--id 9 is not in --cluster");
    assert_refused(&["--id", "9"], &[("METASTORE_ID", "junk")], "--id 9 is not in --cluster");
    assert_refused(&[], &[("METASTORE_JOIN", "true")], "--cluster lists no other member");
    // Past `--join`, the next contradiction is found.
    let flags = ["--join=false", "--port", "12379"];
    assert_refused(&flags, &[("METASTORE_JOIN", "true")], "is both the peer URL");
}
