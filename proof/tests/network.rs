//! What the network says it does to packets, it does: a chaos whose faults have
//! no effect would be green for nothing.

mod rounds;

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use metastore_proof::{
    Failure, Figures, Result,
    drive::drive_in,
    faults::{
        delay::DelayProxy,
        network::{Broken, CLIENTS, Network, PEER_PORT, address, proxy_port},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_millis(600);

const DELAY: Duration = Duration::from_millis(40);

fn peer(host: u64) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address(host)), PEER_PORT)
}

fn namespace(network: &Network, member: u64) -> Result<Arc<OwnedFd>> {
    network.place(member)?.namespace.ok_or_else(|| Failure::failed("a place without a namespace"))
}

/// Sends back what it is sent, until told to stop.
async fn echo(stop: CancellationToken) -> Result<()> {
    let listener = TcpListener::bind(peer(1)).await?;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (mut connection, _) = accepted?;
        tokio::spawn(async move {
            let (mut from, mut to) = connection.split();
            tokio::io::copy(&mut from, &mut to).await
        });
    }
    Ok(())
}

/// Whether a byte comes back in time.
async fn echoes(connection: &mut TcpStream, patience: Duration) -> bool {
    let exchange = async {
        connection.write_all(b"x").await?;
        connection.read_u8().await
    };
    matches!(timeout(patience, exchange).await, Ok(Ok(b'x')))
}

async fn connect() -> Option<TcpStream> {
    timeout(PATIENCE, TcpStream::connect(peer(1))).await.ok()?.ok()
}

/// Whether a new connection from member 2 to member 1 works.
async fn works() -> bool {
    match connect().await {
        Some(mut connection) => echoes(&mut connection, PATIENCE).await,
        None => false,
    }
}

async fn works_again() -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if works().await {
            return true;
        }
    }
    false
}

/// Member 2's part.
async fn cuts_and_loss(network: &Network) -> Result<()> {
    assert!(works_again().await, "a network in which nothing is wrong");
    for link in [(1, 2), (2, 1)] {
        let mut connection = connect().await.expect("a connection");
        let cut = Broken { cut: [link].into(), ..Broken::default() };
        network.set(&cut)?;
        assert!(!works().await, "a connection over {link:?}, which is cut");
        assert!(!echoes(&mut connection, PATIENCE).await, "an older one over {link:?}");
        network.set(&Broken::default())?;
        assert!(works_again().await, "healed");
    }
    let other = Broken { cut: [(1, 3), (3, 1)].into(), ..Broken::default() };
    network.set(&other)?;
    assert!(works().await, "another link is cut");

    let lossy = Broken { lossy: [((2, 1), 50)].into(), ..Broken::default() };
    network.set(&lossy)?;
    let (mut hit, mut through) = (0, 0);
    for _ in 0..20 {
        let start = Instant::now();
        let worked = works().await;
        hit += u32::from(!worked || start.elapsed() > Duration::from_millis(150));
        through += u32::from(worked);
    }
    assert!(
        hit >= 5 && through >= 1,
        "{hit} of 20 were hit by a loss of one half, {through} worked"
    );
    network.set(&Broken::default())
}

/// Member 2's part.
async fn slowness(network: &Network) -> Result<()> {
    let mut older = connect().await.expect("a connection");
    assert!(echoes(&mut older, PATIENCE).await);
    let slow = Broken { slow: [(2, 1)].into(), ..Broken::default() };
    network.set(&slow)?;
    assert!(!echoes(&mut older, PATIENCE).await, "older connections are made anew");
    let mut connection = connect().await.expect("a connection");
    let start = Instant::now();
    assert!(echoes(&mut connection, Duration::from_secs(5)).await);
    assert!(start.elapsed() >= 2 * DELAY, "{:?}", start.elapsed());
    network.set(&Broken::default())?;
    assert!(works_again().await, "healed");
    Ok(())
}

fn all() -> Result<Figures> {
    let network = Network::new(3)?;
    let (one, two) = (namespace(&network, 1)?, namespace(&network, 2)?);
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        scope.spawn(|| drive_in(&one, || echo(stop.clone())));
        let _stopped = stop.clone().drop_guard();
        drive_in(&two, || cuts_and_loss(&network))?;
        drive_in(network.clients(), || async {
            let listen = SocketAddr::new(address(CLIENTS).into(), proxy_port(2, 1));
            let _proxy = DelayProxy::start(listen, peer(1), DELAY).await?;
            let (network, two) = (&network, &two);
            let member = thread::scope(|scope| {
                let member = scope.spawn(|| drive_in(two, || slowness(network)));
                member.join()
            });
            member.map_err(|_| Failure::failed("slowness"))?
        })
    })?;
    Ok(Figures::new("network"))
}

#[test]
fn faults_of_the_network_have_their_effect_and_end() {
    rounds::short("network", all);
}
