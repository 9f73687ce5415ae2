//! The project's own messages, compiled from `metastore.proto`.

#![allow(missing_docs, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/metastore.v1.rs"));
