//! The engines under test, and what their disks may do.

use metastore::storage::{
    Engine,
    memory::MemoryEngine,
    rocks::{Kind, MemoryBudget, RocksEngine},
};
use tempfile::TempDir;

pub trait Store {
    type Engine: Engine;

    fn new() -> Self;
    fn engine(&self) -> &Self::Engine;
    /// Drops what nobody needs any more from the disk.
    fn forget(&self);
    fn restart(self) -> Self;
    /// What is found after a loss of power.
    fn crash(self) -> Self;
}

pub struct Memory(MemoryEngine);

impl Store for Memory {
    type Engine = MemoryEngine;

    fn new() -> Self {
        Self(MemoryEngine::new())
    }

    fn engine(&self) -> &MemoryEngine {
        &self.0
    }

    fn forget(&self) {
        self.0.forget();
    }

    fn restart(self) -> Self {
        self.0.flush().unwrap();
        self.crash()
    }

    fn crash(self) -> Self {
        Self(self.0.crash(|unsynced| unsynced / 2))
    }
}

pub struct Rocks {
    engine: RocksEngine,
    // Dropped after the engine that lives in it.
    dir: TempDir,
}

fn open(dir: &TempDir) -> RocksEngine {
    RocksEngine::open(dir.path(), Kind::State, &MemoryBudget::new(4 << 20)).unwrap()
}

impl Store for Rocks {
    type Engine = RocksEngine;

    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Self { engine: open(&dir), dir }
    }

    fn engine(&self) -> &RocksEngine {
        &self.engine
    }

    fn forget(&self) {
        self.engine.compact();
    }

    fn restart(self) -> Self {
        self.engine.flush().unwrap();
        let Self { engine, dir } = self;
        drop(engine);
        Self { engine: open(&dir), dir }
    }

    fn crash(self) -> Self {
        // Closing keeps or loses what was not flushed; what a kill leaves is
        // tried in the storage layer's own tests.
        let Self { engine, dir } = self;
        drop(engine);
        Self { engine: open(&dir), dir }
    }
}
