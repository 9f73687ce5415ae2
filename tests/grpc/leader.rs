//! What a member without a leader answers, and to whom.

use std::time::{Duration, Instant};

use metastore::proto::etcdserverpb::{
    LeaseKeepAliveRequest, RangeRequest, kv_client::KvClient, lease_client::LeaseClient,
    watch_client::WatchClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use super::{
    one,
    port::{requests, watch_one},
    process::{Cluster, eventually},
    put,
};

/// How long "at once" may take on a slow machine; below every timeout.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn channel(cluster: &Cluster, id: u64) -> Channel {
    let url = format!("http://127.0.0.1:{}", cluster.node(id).client_port());
    Channel::from_shared(url).expect("a URL").connect().await.expect("a connection")
}

fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().expect("metadata"));
    request
}

fn has_no_leader(status: &Status) {
    let told = (status.code(), status.message());
    assert_eq!(told, (Code::Unavailable, "etcdserver: no leader"));
}

fn local(key: &str) -> RangeRequest {
    RangeRequest { serializable: true, ..one(key) }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_requires_a_leader_is_told_that_there_is_none() {
    let mut cluster = Cluster::start(3).await;
    let channel = channel(&cluster, 1).await;
    let mut kv = KvClient::new(channel.clone());
    kv.put(put("key", "value")).await.expect("a put");
    // After this member 1 has applied it, so that no watch there is told of it.
    kv.range(one("key")).await.expect("a read");
    let mut watches = WatchClient::new(channel.clone());
    let (_strict, stream) = requests(vec![watch_one("key")]);
    let strict = watches.watch(with_leader(stream)).await;
    let mut strict = strict.expect("a stream").into_inner();
    let (_patient, stream) = requests(vec![watch_one("key")]);
    let patient = watches.watch(Request::new(stream)).await;
    let mut patient = patient.expect("a stream").into_inner();
    for stream in [&mut strict, &mut patient] {
        assert!(stream.message().await.expect("an answer").expect("an answer").created);
    }

    cluster.node_mut(2).kill();
    cluster.node_mut(3).kill();
    eventually("member 1 knows of no leader", async || {
        (cluster.http(1).status("leader_id").await == 0).then_some(())
    })
    .await;
    let start = Instant::now();
    has_no_leader(&kv.range(with_leader(one("key"))).await.expect_err("no leader"));
    has_no_leader(&kv.range(with_leader(local("key"))).await.expect_err("no leader"));
    has_no_leader(&kv.put(with_leader(put("key", "late"))).await.expect_err("no leader"));
    let (_sender, stream) = requests(vec![watch_one("key")]);
    has_no_leader(&watches.watch(with_leader(stream)).await.expect_err("no leader"));
    let mut leases = LeaseClient::new(channel);
    let (_sender, stream) = requests(vec![LeaseKeepAliveRequest { id: 1 }]);
    has_no_leader(&leases.lease_keep_alive(with_leader(stream)).await.expect_err("no leader"));
    let answer = kv.range(local("key")).await.expect("a local read").into_inner();
    assert_eq!(answer.kvs[0].value, "value");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());

    let status = kv.range(one("key")).await.expect_err("nobody confirms it");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let ended = loop {
        match strict.message().await {
            // What it was told before.
            Ok(answer) => assert!(answer.is_some_and(|answer| !answer.events.is_empty())),
            Err(status) => break status,
        }
    };
    has_no_leader(&ended);

    // Who did not ask for a leader misses nothing.
    cluster.node_mut(2).start().await;
    eventually("a put", async || kv.put(put("key", "later")).await.ok()).await;
    let answer = patient.message().await.expect("the stream goes on").expect("an answer");
    assert_eq!(answer.events[0].kv.as_ref().map(|kv| kv.value.as_ref()), Some(&b"later"[..]));
    assert_eq!(kv.range(with_leader(one("key"))).await.expect("a leader").get_ref().count, 1);
}
