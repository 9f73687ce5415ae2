//! More connections than a node has open files for.

use tokio::net::TcpStream;

use super::Server;

/// Open files of the node: some for its databases, the rest for connections.
const OPEN_FILES: u64 = 512;

/// Connections that do nothing, to each of the two ports.
const IDLE: usize = 600;

/// Open files of this test.
const OWN_FILES: u64 = 4_096;

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_beyond_the_open_files_keep_nobody_out() {
    let own = rlimit::increase_nofile_limit(OWN_FILES).expect("a limit");
    assert!(own >= OWN_FILES, "this test needs {OWN_FILES} open files and may have {own}");
    let mut server = Server::new();
    server.node.limit_open_files(OPEN_FILES);
    server.node.start().await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        for port in [server.node.client_port(), server.node.peer_port] {
            let socket = TcpStream::connect(("127.0.0.1", port)).await;
            idle.push(socket.expect("a connection"));
        }
    }
    for number in 0..100 {
        let path = format!("/key-{number}");
        server.port().put(&path, "value").await.is(204);
        assert_eq!(server.port().get(&path).await.is(200).body, b"value");
    }
    drop(idle);
    server.node.stop().await;
}
