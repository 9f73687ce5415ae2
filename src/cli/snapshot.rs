//! `metastore snapshot`: flags of its commands.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{
    error::Fatal,
    machine::Revisions,
    snapshot::{Format, Restore, Save, Status},
};

/// What to do with a snapshot.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Save the data of a running cluster to a file.
    Save(SaveArgs),
    /// Show what a snapshot file holds.
    Status(StatusArgs),
    /// Make a new cluster of one member from a snapshot file, of metastore or
    /// of etcd 3.4 and later.
    Restore(RestoreArgs),
}

/// Flags of `snapshot save`.
#[derive(Debug, Clone, Args)]
pub struct SaveArgs {
    /// Where to; must not exist.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Client URL of the member to ask.
    #[arg(long, env = "METASTORE_ENDPOINT", hide_env = true, value_name = "URL")]
    #[arg(default_value = "http://127.0.0.1:12380")]
    pub endpoint: String,
}

/// Flags of `snapshot status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The snapshot file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// How to write the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = format())]
    pub write_out: Format,
}

/// Flags of `snapshot restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The snapshot file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Where data is kept; {data-dir}/{id} is made and must not exist.
    #[arg(long, env = "METASTORE_DATA_DIR", hide_env = true, value_name = "DIR")]
    #[arg(default_value = "data")]
    pub data_dir: PathBuf,

    /// The id of the new cluster's member, from 1.
    #[arg(long, env = "METASTORE_ID", hide_env = true, value_name = "N", default_value_t = 1)]
    pub id: u64,

    /// The peer URL of the new cluster's member.
    #[arg(long, env = "METASTORE_CLUSTER", hide_env = true, value_name = "URL")]
    #[arg(default_value = "http://127.0.0.1:12379")]
    pub cluster: String,

    /// Take a file without a checksum, such as one copied from a data directory
    /// of etcd, or with a wrong one.
    #[arg(long)]
    pub skip_hash_check: bool,

    /// Go on so many revisions after the last one saved, so that no revision
    /// that clients saw after the snapshot is given again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub bump_revision: u64,

    /// Count everything before that revision as compacted, so that clients
    /// that watch notice it and read again.
    #[arg(long)]
    pub mark_compacted: bool,
}

impl SnapshotCommand {
    /// Carries it out and prints its report.
    ///
    /// # Errors
    /// Why it was not carried out.
    pub fn run(self) -> Result<(), Fatal> {
        let report = match self {
            Self::Save(SaveArgs { file, endpoint }) => Save { file, endpoint }.run()?,
            Self::Status(StatusArgs { file, write_out }) => {
                Status { file, format: write_out }.run()?
            }
            Self::Restore(args) => args.into_restore().run()?,
        };
        // Whoever closed standard output does not want to know.
        let _unheard = writeln!(io::stdout(), "{report}");
        Ok(())
    }
}

impl RestoreArgs {
    fn into_restore(self) -> Restore {
        Restore {
            file: self.file,
            data_dir: self.data_dir,
            id: self.id,
            cluster: self.cluster,
            skip_hash_check: self.skip_hash_check,
            revisions: Revisions { bump: self.bump_revision, mark_compacted: self.mark_compacted },
        }
    }
}

fn format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(["text", "json"]).map(|name| match name.as_str() {
        "json" => Format::Json,
        _ => Format::Text,
    })
}
