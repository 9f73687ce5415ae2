//! Ports that stay this test process's own, also while a node is down.

use std::{
    net::TcpListener,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Ports are taken from below the range that systems give to outgoing
/// connections, which could otherwise sit on the port of a stopped node.
const FIRST_PORT: u16 = 13_000;

/// Ports of one test process.
const BLOCK_PORTS: u16 = 1_000;

/// Blocks up to port 30,999.
const BLOCKS: u16 = 18;

struct Block {
    /// Holds the block's first port for as long as the process lives, which
    /// keeps other test processes out of the block.
    _claim: TcpListener,
    next: u16,
    end: u16,
}

fn claim_block() -> Block {
    let offset = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("below BLOCKS");
    (0..BLOCKS)
        .map(|step| FIRST_PORT + (offset + step) % BLOCKS * BLOCK_PORTS)
        .find_map(|first| {
            let claim = TcpListener::bind(("127.0.0.1", first)).ok()?;
            Some(Block { _claim: claim, next: first + 1, end: first + BLOCK_PORTS })
        })
        .expect("every block of test ports is taken")
}

/// A port of 127.0.0.1 on which nobody listens and which was not given out
/// before by this process.
///
/// # Panics
/// When the process has used up its ports.
pub fn free_port() -> u16 {
    static BLOCK: OnceLock<Mutex<Block>> = OnceLock::new();
    let mutex = BLOCK.get_or_init(|| Mutex::new(claim_block()));
    let mut block = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    while block.next < block.end {
        let port = block.next;
        block.next += 1;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("this process has used up its {BLOCK_PORTS} test ports");
}
