//! From a running cluster into a file.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::HumanBytes;
use sha2::{Digest, Sha256};
use tempfile::{Builder, NamedTempFile};
use tokio::{runtime, signal::ctrl_c};
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use super::{Progress, Report, contents};
use crate::{
    config::normalize_url,
    error::Fatal,
    proto::etcdserverpb::{
        SnapshotRequest, SnapshotResponse, maintenance_client::MaintenanceClient,
    },
    storage::rocks::sync_directory,
};

/// How long a member may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How often a member that is silent is asked whether it is there, and how
/// long it may take to say so. It is silent while it makes the snapshot.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The length of the checksum at the end of a snapshot.
const CHECKSUM_LEN: usize = 32;

/// Bytes that are written at once.
const BUFFER_LEN: usize = 1 << 20;

/// What is saved, and where.
#[derive(Debug, Clone)]
pub struct Save {
    /// The file, which must not exist.
    pub file: PathBuf,
    /// The client URL of the member that is asked.
    pub endpoint: String,
}

impl Save {
    /// Saves a snapshot. The file is there once it is whole, checked and
    /// durable; until then its content is in a file with `.part` behind the
    /// name.
    ///
    /// # Errors
    /// When the file exists or cannot be written, when the member cannot be
    /// reached or makes no snapshot, or when what arrives is not what was sent.
    pub fn run(self) -> Result<Report, Fatal> {
        let url = normalize_url(&self.endpoint).or_else(|_| {
            // As etcd's own tools take it.
            normalize_url(&format!("http://{}", self.endpoint))
        });
        let url = url.map_err(|reason| {
            let endpoint = self.endpoint.escape_debug();
            Fatal::new(
                format!("--endpoint `{endpoint}` is not a URL: {reason}"),
                "write http://host:port",
            )
        })?;
        let part = self.part()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            Fatal::new(format!("cannot start: {e}"), "raise the limits on threads of this user")
        })?;
        let part = runtime.block_on(async {
            tokio::select! {
                received = receive(&url, part) => received,
                _ = ctrl_c() => Err(Fatal::new("interrupted", "nothing was saved; save again")),
            }
        })?;
        self.finish(part)
    }

    fn part(&self) -> Result<NamedTempFile, Fatal> {
        let exists = |path: &Path, remedy: &str| {
            Fatal::new(format!("the file {} exists already", path.display()), remedy)
        };
        let Some(name) = self.file.file_name() else {
            let what = format!("{} does not name a file", self.file.display());
            return Err(Fatal::new(what, "write where the snapshot shall be kept"));
        };
        if self.file.symlink_metadata().is_ok() {
            return Err(exists(&self.file, "name another file, or move it away"));
        }
        let mut name = OsString::from(name);
        name.push(".part");
        let part = Builder::new().prefix(&name).rand_bytes(0).tempfile_in(self.directory());
        part.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => exists(
                &self.directory().join(&name),
                "delete it if no other command is saving a snapshot there",
            ),
            _ => self.unwritable(e),
        })
    }

    fn directory(&self) -> &Path {
        match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Looks into the file and gives it its name.
    fn finish(&self, part: NamedTempFile) -> Result<Report, Fatal> {
        let (_, contents) = contents(part.path())?;
        let len = part.as_file().metadata().map_err(|e| self.unwritable(e))?.len();
        part.as_file().sync_all().map_err(|e| self.unwritable(e))?;
        part.persist_noclobber(&self.file).map_err(|e| self.unwritable(e.error))?;
        sync_directory(self.directory())?;
        Ok(format!(
            "saved {} to {}: revision {}, {} records of keys, {} leases, hash {:08x}",
            HumanBytes(len),
            self.file.display(),
            contents.revision(),
            contents.changes,
            contents.leases,
            contents.hash,
        ))
    }

    fn unwritable(&self, cause: std::io::Error) -> Fatal {
        Fatal::new(
            format!("cannot write the snapshot {}: {cause}", self.file.display()),
            "check the directory, its permissions and the free space",
        )
    }
}

/// Receives a snapshot into a file and checks it.
async fn receive(url: &str, part: NamedTempFile) -> Result<NamedTempFile, Fatal> {
    let stream = request(url).await?;
    let mut output = Output::new(part.as_file());
    let lost = |cause: &dyn std::fmt::Display| {
        let what = format!("the snapshot from {url} broke off: {cause}");
        Fatal::new(what, "nothing was saved; save again, or ask another member with --endpoint")
    };
    let mut stream = stream;
    let mut progress = None;
    loop {
        let message = stream.message().await.map_err(|status| lost(&status.message()))?;
        let Some(SnapshotResponse { blob, remaining_bytes, .. }) = message else { break };
        output.take(&blob).map_err(|cause| {
            let what = format!("cannot write {}: {cause}", part.path().display());
            Fatal::new(what, "nothing was saved; check the free space and save again")
        })?;
        let total = output.received.saturating_add(remaining_bytes);
        let progress = progress.get_or_insert_with(|| Progress::bytes("saving", Some(total)));
        progress.set(output.received);
    }
    drop(progress);
    output.finish().map_err(|cause| lost(&cause))?;
    Ok(part)
}

async fn request(url: &str) -> Result<Streaming<SnapshotResponse>, Fatal> {
    let unreachable = |cause: &dyn std::fmt::Display| {
        let what = format!("cannot get a snapshot from {url}: {cause}");
        Fatal::new(what, "name the client URL of a member that is up with --endpoint")
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| unreachable(&e))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_PATIENCE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let channel: Channel = endpoint.connect().await.map_err(|e| {
        let cause: &dyn std::error::Error = &e;
        let root = std::iter::successors(Some(cause), |error| error.source()).last();
        unreachable(&root.map_or_else(|| e.to_string(), ToString::to_string))
    })?;
    let answer = MaintenanceClient::new(channel).snapshot(SnapshotRequest::default()).await;
    let stream = answer.map_err(|status| match status.code() {
        Code::ResourceExhausted => Fatal::new(
            format!("cannot get a snapshot from {url}: {}", status.message()),
            "ask another member with --endpoint, or save again later",
        ),
        _ => unreachable(&status.message()),
    })?;
    Ok(stream.into_inner())
}

/// The file as it arrives. Its last bytes are the checksum of those before.
struct Output<'a> {
    file: BufWriter<&'a File>,
    hash: Sha256,
    /// What may be the checksum.
    held: Vec<u8>,
    received: u64,
}

impl<'a> Output<'a> {
    fn new(file: &'a File) -> Self {
        let file = BufWriter::with_capacity(BUFFER_LEN, file);
        Self { file, hash: Sha256::new(), held: Vec::new(), received: 0 }
    }

    fn take(&mut self, blob: &[u8]) -> std::io::Result<()> {
        self.received += blob.len() as u64;
        self.held.extend_from_slice(blob);
        let certain = self.held.len().saturating_sub(CHECKSUM_LEN);
        self.hash.update(&self.held[..certain]);
        self.file.write_all(&self.held[..certain])?;
        self.held.drain(..certain);
        Ok(())
    }

    fn finish(mut self) -> Result<(), String> {
        if self.hash.finalize()[..] != self.held[..] {
            return Err(format!("the checksum of the {} bytes received is wrong", self.received));
        }
        let written = self.file.write_all(&self.held).and_then(|()| self.file.flush());
        written.map_err(|cause| cause.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn received(blobs: &[&[u8]]) -> (Result<(), String>, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let mut output = Output::new(&file);
        blobs.iter().for_each(|blob| output.take(blob).unwrap());
        let finished = output.finish();
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        (finished, content)
    }

    #[test]
    fn the_checksum_is_found_wherever_the_pieces_end() {
        let data = b"some pages of a snapshot";
        let whole = [&data[..], &Sha256::digest(data)].concat();
        for piece in 1..=whole.len() {
            let blobs: Vec<&[u8]> = whole.chunks(piece).collect();
            assert_eq!(received(&blobs), (Ok(()), whole.clone()), "pieces of {piece}");
        }
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        for blobs in [&damaged[..], &whole[1..], &whole[..whole.len() - 1], b""] {
            assert!(received(&[blobs]).0.is_err());
        }
    }
}
