//! From a snapshot file to the data directory of a new cluster.

use std::path::PathBuf;

use super::{Progress, Report, contents, failed};
use crate::{
    config::parse_cluster,
    error::Fatal,
    machine::{self, Contents, Imported, Revisions},
    node,
    storage::{
        bolt::{Reader, Trailer, trailing_sha256},
        rocks::RocksEngine,
    },
};

/// What is restored, and where.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The snapshot file, of this program or of etcd.
    pub file: PathBuf,
    /// Where the member's own directory, `{data_dir}/{id}`, is made.
    pub data_dir: PathBuf,
    /// The only member's id, from 1.
    pub id: u64,
    /// Its peer URL, as `--cluster` has it.
    pub cluster: String,
    /// Whether a file without a checksum, or with a wrong one, is taken.
    pub skip_hash_check: bool,
    /// What becomes of the revisions.
    pub revisions: Revisions,
}

impl Restore {
    /// Makes the data directory of a new cluster with one member, which holds
    /// what the file holds. A failure leaves nothing of it.
    ///
    /// # Errors
    /// When the options contradict each other, when the file is damaged or of
    /// a cluster with users, when the directory exists, or when the disk
    /// refuses.
    pub fn run(self) -> Result<Report, Fatal> {
        let peer_url = self.peer_url()?;
        let Revisions { bump, mark_compacted } = self.revisions;
        if (bump > 0) != mark_compacted {
            return Err(Fatal::new(
                "--bump-revision and --mark-compacted are of use together only: watches must \
                 neither wait for revisions that were seen before nor miss what was in between",
                "give both, or neither",
            ));
        }
        if !self.skip_hash_check {
            self.check_hash()?;
        }
        let (reader, contents) = contents(&self.file)?;
        let root = self.data_dir.join(self.id.to_string());
        let (identity, imported) = node::found_restored(&root, self.id, &peer_url, |engine| {
            self.import(engine, &reader, &contents)
        })?;
        Ok(self.report(&contents, identity.cluster_id, imported, &peer_url))
    }

    /// The one entry of `--cluster`.
    fn peer_url(&self) -> Result<String, Fatal> {
        if self.id == 0 {
            return Err(Fatal::new("--id is 0", "ids count from 1"));
        }
        let mut entries = parse_cluster(&self.cluster)?;
        let is_named = !self.cluster.trim_start().starts_with("http");
        match (entries.pop(), entries.is_empty()) {
            (Some(entry), true) if !is_named || entry.id == self.id => Ok(entry.url),
            (_, true) => Err(Fatal::new(
                format!("--cluster does not name member {}", self.id),
                "give the peer URL of the member that --id names",
            )),
            _ => Err(Fatal::new(
                "--cluster lists more than one member, but a restored cluster begins with one",
                "give the peer URL of the first, and add the others once it runs",
            )),
        }
    }

    fn check_hash(&self) -> Result<(), Fatal> {
        let file = self.file.display();
        match trailing_sha256(&self.file)
            .map_err(|error| failed("read", &self.file, error.into()))?
        {
            Trailer::Right => Ok(()),
            Trailer::Wrong => Err(Fatal::new(
                format!("the checksum of the snapshot {file} is wrong: it was changed since"),
                "take another snapshot file",
            )),
            Trailer::Absent => Err(Fatal::new(
                format!("the snapshot {file} has no checksum: it was cut off, or not saved as one"),
                "take another snapshot file, or, for a file copied from a data directory of etcd, \
                 give --skip-hash-check",
            )),
        }
    }

    fn import(
        &self,
        engine: &RocksEngine,
        reader: &Reader,
        contents: &Contents,
    ) -> Result<Imported, Fatal> {
        let mut progress = Progress::records("restoring", Some(contents.changes));
        let imported = machine::import(engine, reader, contents, self.revisions, &mut |done| {
            progress.set(done);
            Ok(())
        });
        imported.map_err(|error| failed("restore", &self.file, error))
    }

    fn report(
        &self,
        contents: &Contents,
        cluster_id: u64,
        imported: Imported,
        peer_url: &str,
    ) -> Report {
        let (id, dir) = (self.id, self.data_dir.display());
        let Imported { revision, keys, leases, detached, .. } = imported;
        let mut lines = vec![format!(
            "restored {} to {dir}/{id}: revision {revision}, {keys} keys, {leases} leases, new \
             cluster {cluster_id}",
            self.file.display(),
        )];
        if contents.alarms > 0 {
            let alarms = contents.alarms;
            lines.push(format!("left out: {alarms} alarms of the members that were saved"));
        }
        if detached > 0 {
            lines.push(format!(
                "{detached} keys named leases that the snapshot does not have; they are kept \
                 without a lease"
            ));
        }
        lines.push(format!(
            "start it with: metastore --id {id} --data-dir {dir} --cluster {id}={peer_url}"
        ));
        lines.join("\n")
    }
}
