"""Uses the Python client etcd3 as an application would.

Takes host:port of each member. Prints one line a step and exits 0 only when
every step did what it should.
"""

import sys
import threading

import etcd3

PREFIX = "python/"


def step(name, holds):
    if not holds:
        sys.exit(f"FAILED: {name}")
    print(f"ok: {name}")


def keys_and_values(client):
    client.put(PREFIX + "a", "1")
    value, meta = client.get(PREFIX + "a")
    step("put and get", value == b"1" and meta.version == 1)
    binary = bytes(range(256))
    client.put(PREFIX + "binary", binary)
    step("any bytes", client.get(PREFIX + "binary")[0] == binary)
    for n in range(20):
        client.put(f"{PREFIX}many/{n:02}", str(n))
    found = list(client.get_prefix(PREFIX + "many/", sort_order="descend"))
    step("a sorted prefix", [v for v, _ in found] == [str(n).encode() for n in range(19, -1, -1)])
    step("put if absent", client.put_if_not_exists(PREFIX + "a", "2") is False)
    step("compare and swap", client.replace(PREFIX + "a", "1", "2") is True)
    step("a failed swap", client.replace(PREFIX + "a", "1", "3") is False)
    step("delete", client.delete(PREFIX + "a") is True and client.get(PREFIX + "a")[0] is None)
    step("delete what is not there", client.delete(PREFIX + "a") is False)
    deleted = client.delete_prefix(PREFIX + "many/")
    step("delete a prefix", deleted.deleted == 20)


def transactions(client):
    tx = client.transactions
    client.put(PREFIX + "txn", "old")
    succeeded, responses = client.transaction(
        compare=[tx.value(PREFIX + "txn") == "old", tx.version(PREFIX + "txn") > 0],
        success=[tx.put(PREFIX + "txn", "new"), tx.get(PREFIX + "txn")],
        failure=[tx.delete(PREFIX + "txn")],
    )
    step("a transaction", succeeded and responses[1][0][0] == b"new")
    succeeded, _ = client.transaction(
        compare=[tx.create(PREFIX + "txn") == 0],
        success=[],
        failure=[tx.delete(PREFIX + "txn")],
    )
    step("its other branch", not succeeded and client.get(PREFIX + "txn")[0] is None)


def watches(client):
    events, cancel = client.watch_prefix(PREFIX + "watch/")
    writer = threading.Thread(
        target=lambda: [client.put(f"{PREFIX}watch/{n}", str(n)) for n in range(10)]
        + [client.delete(PREFIX + "watch/0")]
    )
    writer.start()
    seen = [next(events) for _ in range(11)]
    writer.join()
    cancel()
    puts = [e.value for e in seen[:10]]
    step("a watch in order", puts == [str(n).encode() for n in range(10)])
    step("a watched deletion", isinstance(seen[10], etcd3.events.DeleteEvent))
    first = seen[0].mod_revision
    events, cancel = client.watch_prefix(PREFIX + "watch/", start_revision=first)
    again = [next(events).mod_revision for _ in range(11)]
    cancel()
    step("a watch from the past", again == [e.mod_revision for e in seen])


def leases_and_locks(client, other):
    lease = client.lease(60)
    client.put(PREFIX + "leased", "x", lease=lease)
    step("time to live", 0 < lease.remaining_ttl <= 60 and lease.granted_ttl == 60)
    step("keep alive", lease.refresh()[0].TTL == 60)
    step("its keys", lease.keys == [(PREFIX + "leased").encode()])
    lease.revoke()
    step("revoke", client.get(PREFIX + "leased")[0] is None)
    lock = client.lock("python", ttl=20)
    rival = other.lock("python", ttl=20)
    step("a lock", lock.acquire(timeout=10) and lock.is_acquired())
    step("a lock held elsewhere", rival.acquire(timeout=1) is False)
    lock.release()
    step("a lock let go", rival.acquire(timeout=10) and rival.release())


def cluster(client, endpoints):
    members = list(client.members)
    step("members", len(members) == len(endpoints) and all(m.client_urls for m in members))
    status = client.status()
    step("status", status.leader is not None and status.db_size > 0 and status.version)
    step("no alarms", list(client.list_alarms()) == [])
    revision = client.get_response(PREFIX + "a").header.revision
    client.compact(revision)
    events, cancel = client.watch(PREFIX + "a", start_revision=1)
    try:
        next(events)
        step("a watch of what was compacted", False)
    except etcd3.exceptions.RevisionCompactedError as error:
        step("a watch of what was compacted", error.compacted_revision == revision)
    client.defragment()
    step("defragment", True)


def main(endpoints):
    clients = [
        etcd3.client(host=host, port=int(port), timeout=10)
        for host, port in (endpoint.rsplit(":", 1) for endpoint in endpoints)
    ]
    first, last = clients[0], clients[-1]
    keys_and_values(first)
    transactions(last)
    watches(last)
    leases_and_locks(first, last)
    cluster(first, endpoints)
    print("all passed")


if __name__ == "__main__":
    main(sys.argv[1:])
