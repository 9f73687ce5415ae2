//! Ports of 127.0.0.1 that stay this process's own, also while a member is down.

use std::{
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use crate::{Failure, Result};

/// Ports are taken from below the range that systems give to outgoing
/// connections, which could otherwise sit on the port of a stopped member.
const FIRST_PORT: u16 = 13_000;

/// Ports of one process.
const BLOCK_PORTS: u16 = 1_000;

/// Blocks up to port 30,999.
const BLOCKS: u16 = 18;

struct Block {
    /// Holds the block's first port for as long as the process lives, which
    /// keeps other processes that do the same out of the block.
    _claim: TcpListener,
    next: u16,
    end: u16,
}

fn claim_block() -> Option<Block> {
    let offset = std::process::id() % u32::from(BLOCKS);
    (0..u32::from(BLOCKS)).find_map(|step| {
        let block = u16::try_from((offset + step) % u32::from(BLOCKS)).ok()?;
        let first = FIRST_PORT + block * BLOCK_PORTS;
        let claim = TcpListener::bind(("127.0.0.1", first)).ok()?;
        Some(Block { _claim: claim, next: first + 1, end: first + BLOCK_PORTS })
    })
}

/// A port on which nobody listens and that was not given out before by this
/// process.
///
/// # Errors
/// When there is none left.
pub fn free_port() -> Result<u16> {
    // A lock because tests of one process run side by side. The last is in use; a
    // long run takes more than one, and keeps the claims on all.
    static BLOCKS_TAKEN: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let none = || Failure::failed("there is no free port left between 13000 and 30999");
    let mut blocks = BLOCKS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(block) = blocks.last_mut() {
            while block.next < block.end {
                let port = block.next;
                block.next += 1;
                if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                    return Ok(port);
                }
            }
        }
        blocks.push(claim_block().ok_or_else(none)?);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_long_run_takes_another_block_and_no_port_twice() {
        let ports: Vec<_> = (0..=BLOCK_PORTS).map(|_| free_port().expect("a port")).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
    }
}
