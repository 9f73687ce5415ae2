// Uses the Node client etcd3 as an application would.
//
// Takes the URLs of the members. Prints one line a step and exits 0 only when
// every step did what it should.
'use strict';

const { Etcd3, EtcdLeaseInvalidError } = require('etcd3');

const PREFIX = 'node/';

function step(name, holds) {
  if (!holds) {
    console.log(`FAILED: ${name}`);
    process.exit(1);
  }
  console.log(`ok: ${name}`);
}

async function keysAndValues(client) {
  await client.put(PREFIX + 'a').value('1');
  step('put and get', (await client.get(PREFIX + 'a').string()) === '1');
  const binary = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  await client.put(PREFIX + 'binary').value(binary);
  step('any bytes', binary.equals(await client.get(PREFIX + 'binary').buffer()));
  for (let n = 0; n < 10; n++) await client.put(`${PREFIX}many/${n}`).value(n);
  const all = await client.getAll().prefix(PREFIX + 'many/').sort('Key', 'Descend').keys();
  step('a sorted prefix', all.length === 10 && all[0] === PREFIX + 'many/9');
  step('a limit', (await client.getAll().prefix(PREFIX + 'many/').limit(3).keys()).length === 3);
  step('a count', (await client.getAll().prefix(PREFIX + 'many/').count()) === 10);
  const previous = await client.put(PREFIX + 'a').value('2').getPrevious();
  step('the previous value', previous.value.toString() === '1');
  const gone = await client.delete().prefix(PREFIX + 'many/');
  step('delete a prefix', Number(gone.deleted) === 10);
}

async function transactions(client) {
  const won = await client
    .if(PREFIX + 'a', 'Value', '==', '2')
    .and(PREFIX + 'absent', 'Create', '==', 0)
    .then(client.put(PREFIX + 'a').value('3'), client.get(PREFIX + 'a'))
    .else(client.delete().key(PREFIX + 'a'))
    .commit();
  const read = won.responses[1].response_range.kvs[0].value.toString();
  step('a transaction', won.succeeded && read === '3');
  let attempts = 0;
  await client.stm().transact(async (tx) => {
    attempts += 1;
    const value = Number(await tx.get(PREFIX + 'a').string());
    await tx.put(PREFIX + 'a').value(value + 1);
  });
  step('software transactional memory', attempts === 1 && (await client.get(PREFIX + 'a')) === '4');
}

async function watches(client) {
  const watcher = await client.watch().prefix(PREFIX + 'watch/').create();
  const seen = [];
  const complete = new Promise((resolve) => {
    watcher.on('put', (kv) => seen.push(kv.value.toString()));
    watcher.on('delete', () => resolve());
  });
  for (let n = 0; n < 10; n++) await client.put(PREFIX + 'watch/key').value(n);
  await client.delete().key(PREFIX + 'watch/key');
  await complete;
  await watcher.cancel();
  step('a watch in order', seen.join('') === '0123456789');
}

async function leases(client) {
  const lease = client.lease(30);
  await lease.put(PREFIX + 'leased').value('x');
  const id = await lease.grant();
  const time = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  step('time to live', time.grantedTTL === '30' && time.keys.length === 1);
  await lease.keepaliveOnce();
  await lease.revoke();
  step('revoke', (await client.get(PREFIX + 'leased')) === null);
  const lost = client.lease(30);
  const lostId = await lost.grant();
  await client.leaseClient.leaseRevoke({ ID: lostId });
  const error = await lost.keepaliveOnce().then(() => null, (e) => e);
  step('a lost lease is noticed', error instanceof EtcdLeaseInvalidError);
}

async function locksAndElections(client) {
  const lock = client.lock('node-lock');
  await lock.acquire();
  const rival = await client.lock('node-lock').acquire().then(() => null, (e) => e);
  step('a lock held elsewhere', rival !== null);
  await lock.release();
  step('a lock let go', (await client.lock('node-lock').do(async () => 'held')) === 'held');

  const election = client.election('node-election');
  const campaign = election.campaign('me');
  await new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
  step('an election', (await election.leader()) === 'me');
  await campaign.resign();
}

async function main(hosts) {
  const client = new Etcd3({ hosts });
  await keysAndValues(client);
  await transactions(client);
  await watches(client);
  await leases(client);
  await locksAndElections(client);
  const { members } = await client.cluster.memberList({});
  step('members', members.length === hosts.length && members.every((m) => m.clientURLs.length === 1));
  client.close();
  console.log('all passed');
}

main(process.argv.slice(2)).catch((error) => {
  console.log(`FAILED: ${error.stack}`);
  process.exit(1);
});
