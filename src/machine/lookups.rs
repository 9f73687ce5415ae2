//! Which keys commands look up, for all of an apply batch to be looked up at
//! once.

use bytes::Bytes;

use super::txn;
use crate::proto::{Command, command::Op, etcdserverpb::request_op::Request};

/// The keys of which a command reads the newest record by itself, nested
/// transactions left out. It may come to read fewer.
pub(super) fn keys(command: &Command) -> Vec<&Bytes> {
    match &command.op {
        Some(Op::Put(put)) => vec![&put.key],
        Some(Op::Delete(delete)) => vec![&delete.key],
        Some(Op::PutRequest(put)) => vec![&put.key],
        Some(Op::DeleteRange(delete)) => alone(&delete.key, &delete.range_end).collect(),
        Some(Op::Txn(request)) => {
            let compared = request.compare.iter().flat_map(|it| alone(&it.key, &it.range_end));
            let used = txn::operations(request).flat_map(|operation| match operation {
                Request::RequestPut(put) => alone(&put.key, &[]),
                Request::RequestRange(range) => alone(&range.key, &range.range_end),
                Request::RequestDeleteRange(delete) => alone(&delete.key, &delete.range_end),
                Request::RequestTxn(_) => None.into_iter(),
            });
            compared.chain(used).collect()
        }
        _ => Vec::new(),
    }
}

/// The key, unless it begins a range.
fn alone<'a>(key: &'a Bytes, range_end: &[u8]) -> std::option::IntoIter<&'a Bytes> {
    range_end.is_empty().then_some(key).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    };

    fn operation(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn key(key: &'static str) -> Bytes {
        Bytes::from_static(key.as_bytes())
    }

    #[test]
    fn keys_are_found_wherever_a_command_has_them_and_ranges_are_not() {
        let put = |name| Request::RequestPut(PutRequest { key: key(name), ..Default::default() });
        let range = |name, range_end| {
            let range = RangeRequest { key: key(name), range_end, ..Default::default() };
            Request::RequestRange(range)
        };
        let compare = |name, range_end| Compare { key: key(name), range_end, ..Compare::default() };
        let request = TxnRequest {
            compare: vec![compare("a", Bytes::new()), compare("b", key("c"))],
            success: vec![operation(put("d")), operation(range("e", key("f")))],
            failure: vec![operation(range("g", Bytes::new()))],
        };
        let command = Command { op: Some(Op::Txn(request)), ..Command::default() };
        assert_eq!(keys(&command), [&key("a"), &key("d"), &key("g")]);
        let delete = DeleteRangeRequest { key: key("h"), ..Default::default() };
        let command = Command { op: Some(Op::DeleteRange(delete)), ..Command::default() };
        assert_eq!(keys(&command), [&key("h")]);
        assert!(keys(&Command::default()).is_empty());
    }
}
