//! What was found once, by name.

use metastore_fuzz::{memory, requests, run, run::Verdict, targets::Target};
use metastore_proof::{drive::drive, process::find_binary};

/// Two requests over HTTP/2, and then more data of the second one than come.
const DATA_THAT_BREAK_OFF: [&[u8]; 6] = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0\0\x0c\x04\0\0\0\0\0\0\x04\0\0\0d\0\x08\0\0\0\0",
    b"\0\0\x38\x01\x05\0\0\0\x01\0\x07:method\x03GET\0\x07:scheme\x04http\0\x05:path\x02/a\
      \0\x0a:authority\x06member",
    b"\0\0\x41\x01\x04\0\0\0\x03\0\x07:method\x04POST\0\x07:scheme\x04http\
      \0\x05:path\x0a/raft/join\0\x0a:authority\x06member",
    b"\0\x10\x06\0\x09\0\0\0\x03",
    b"\0\0\0\0\x03\x0a",
];

/// It ended the connection with a stream open, at which the library panicked.
#[test]
fn a_connection_that_breaks_off_within_data_ends_no_member() {
    let bytes = DATA_THAT_BREAK_OFF.concat();
    let sent = memory::alone(|| drive(requests::again(&find_binary(None)?, &bytes)));
    assert_eq!(sent, Ok(()));
}

/// A snapshot with a field that nobody knows, and in its place another one that
/// breaks off. The library remembers that there was such a field, which made the
/// message another one than what it encodes.
const TWO_SNAPSHOTS: [&[u8]; 3] = [
    b"\x71\0\0\0\x20",
    b"\x08\x07\x10\x01\x18\x02\x20\x03\x28\x03\x30\x28\x40\x1e",
    b"\x4a\x0e\x12\x0a\x20\x03\x28\x03\x30\x28\x40\x1e\x18\x03\x58\x0e\x4a\x29",
];

#[test]
fn a_message_with_two_snapshots_is_what_it_encodes() {
    let mut frames = Target::Frames.decoder().expect("a decoder").expect("of this process");
    let read = run::once(frames.as_mut(), &TWO_SNAPSHOTS.concat());
    assert_eq!(read, Ok(Verdict::Accepted));
}
