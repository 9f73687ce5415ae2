//! What a snapshot file holds.

use std::path::PathBuf;

use indicatif::HumanBytes;
use serde_json::json;

use super::{Report, contents, failed};
use crate::{
    error::Fatal,
    machine::Contents,
    storage::bolt::{Trailer, trailing_sha256},
};

/// How a status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON object, with the names that etcd's tools use.
    Json,
}

/// The file that is looked into.
#[derive(Debug, Clone)]
pub struct Status {
    /// The file.
    pub file: PathBuf,
    /// How the answer is written.
    pub format: Format,
}

impl Status {
    /// Reads the whole file. Hash, revision, keys and size are what etcd's
    /// tools show for it.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn run(self) -> Result<Report, Fatal> {
        let trailer = trailing_sha256(&self.file)
            .map_err(|error| failed("read", &self.file, error.into()))?;
        if trailer == Trailer::Wrong {
            return Err(Fatal::new(
                format!("the checksum of the snapshot {} is wrong", self.file.display()),
                "it was changed after it was saved: take another snapshot file",
            ));
        }
        let (_, contents) = contents(&self.file)?;
        Ok(match self.format {
            Format::Json => to_json(&contents, trailer),
            Format::Text => to_text(&contents, trailer),
        })
    }
}

fn to_json(contents: &Contents, trailer: Trailer) -> Report {
    json!({
        "hash": contents.hash,
        "revision": contents.revision(),
        "compactRevision": contents.compacted,
        "totalKey": contents.records,
        "totalSize": contents.size_bytes,
        "leases": contents.leases,
        "sha256": trailer == Trailer::Right,
    })
    .to_string()
}

fn to_text(contents: &Contents, trailer: Trailer) -> Report {
    let compacted = match contents.compacted {
        0 => "never".to_owned(),
        revision => format!("revision {revision}"),
    };
    let checksum = match trailer {
        Trailer::Right => "right",
        _ => "none (the file was not saved over the API)",
    };
    let lines = [
        format!("hash        {:08x}", contents.hash),
        format!("revision    {}", contents.revision()),
        format!("compacted   {compacted}"),
        format!("total keys  {}", contents.records),
        format!("total size  {} ({} bytes)", HumanBytes(contents.size_bytes), contents.size_bytes),
        format!("leases      {}", contents.leases),
        format!("checksum    {checksum}"),
    ];
    lines.join("\n")
}
