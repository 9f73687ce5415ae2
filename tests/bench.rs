//! `metastore bench` against real members.

mod process;

use process::{Cluster, free_port, refusal, report};
use serde_json::Value;

/// A run with this workload and these options against all members; its report.
async fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let urls: Vec<String> =
        cluster.endpoints().iter().map(|member| member.url().to_owned()).collect();
    let urls = urls.join(",");
    let all = ["bench", "--endpoints", &urls, "--json"];
    let all: Vec<String> = all.iter().chain(arguments).map(|&text| text.to_owned()).collect();
    let text = tokio::task::spawn_blocking(move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        report(&all)
    });
    let text = text.await.expect("it ends");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["errors"], serde_json::json!({}), "{value:#}");
    assert!(value["client_cpu_seconds"].as_f64() > Some(0.0), "{value:#}");
    value
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value:#}"))
}

#[tokio::test]
async fn each_workload_does_what_it_says() {
    let cluster = Cluster::start(3).await;
    for api in ["grpc", "http"] {
        for workload in ["put", "range", "list", "txn", "mixed"] {
            let arguments = [workload, "--api", api, "--total", "300"];
            let keys = ["--key-space", "200", "--list-keys", "100", "--clients", "7"];
            let ran = bench(&cluster, &[&arguments[..], &keys[..]].concat()).await;
            assert_eq!((&ran["workload"], &ran["api"]), (&workload.into(), &api.into()));
            assert_eq!(number(&ran, "operations"), 300, "{ran:#}");
            let (median, longest) = (&ran["latency_us"]["p50"], &ran["latency_us"]["max"]);
            assert!(0.0 < median.as_f64().unwrap() && median.as_f64() <= longest.as_f64());
        }
    }
    let member = cluster.http(1);
    assert!(member.get("bench/000000000199").await.is_some_and(|value| !value.is_empty()));
    assert_eq!(member.get("bench/000000000200").await, None);
}

#[tokio::test]
async fn keys_are_filled_once() {
    let cluster = Cluster::start(1).await;
    let before = cluster.http(1).status("revision").await;
    let filled = bench(&cluster, &["fill", "--key-space", "100"]).await;
    assert_eq!(number(&filled, "operations"), 100);
    let serializable = ["range", "--key-space", "100", "--consistency", "serializable"];
    bench(&cluster, &[&serializable[..], &["--total", "50"]].concat()).await;
    assert_eq!(cluster.http(1).status("revision").await, before + 100);
}

#[tokio::test]
async fn watchers_are_told_of_every_write() {
    let cluster = Cluster::start(3).await;
    let watch = ["watch", "--watchers", "30", "--total", "40", "--connections", "4"];
    let ran = bench(&cluster, &watch).await;
    assert_eq!(number(&ran["puts"], "operations"), 40);
    assert_eq!(number(&ran, "operations"), 30 * 40, "{ran:#}");
}

#[tokio::test]
async fn leases_are_kept_alive_at_a_rate() {
    let cluster = Cluster::start(1).await;
    let keep = ["lease-keepalive", "--clients", "3", "--rate", "200", "--duration", "500ms"];
    let ran = bench(&cluster, &[&keep[..], &["--warm-up", "0"]].concat()).await;
    // As many as are due; those at the end may come too late to count.
    let done = number(&ran, "operations");
    assert!((1..=100).contains(&done), "{ran:#}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_said() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let gone = refusal(&["bench", "put", "--endpoints", &nobody, "--total", "1"]);
    assert!(gone.contains("no request succeeded"), "{gone}");
    let gone = refusal(&["bench", "watch", "--endpoints", &nobody]);
    assert!(gone.contains("a watch failed"), "{gone}");
    let wrong = refusal(&["bench", "put", "--endpoints", "here"]);
    assert!(wrong.contains("`here` is not a member's address"), "{wrong}");
    let wrong = refusal(&["bench", "watch", "--api", "http"]);
    assert!(wrong.contains("over gRPC only"), "{wrong}");
}

#[tokio::test]
async fn a_person_reads_a_table() {
    let cluster = Cluster::start(1).await;
    let url = cluster.http(1).url().to_owned();
    let text = tokio::task::spawn_blocking(move || {
        report(&["bench", "put", "--endpoints", &url, "--total", "100"])
    });
    let text = text.await.expect("it ends");
    for part in ["put over grpc", "a second (100 in", "p99.9", "of processor time"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
