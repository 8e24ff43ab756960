// S16: a network that loses, parts and crawls: real packets in a network namespace of our own, where the whole cluster and its
// clients live (run.js starts it by `unshare -n`). nftables loses and parts, htb narrows; nothing outside is touched.
import { execFileSync } from 'node:child_process';
import { until } from '../cluster.js';
import { sleep } from '../server.js';
import { Load } from './load.js';

/** The group under which the node runs that gets parted from its backends: that is how nftables tells its packets. */
const GROUP = 4242;
const nft = (rules) => execFileSync('nft', ['-f', '-'], { input: rules });

/** Puts these rules on all that this machine sends, in place of the last ones. */
function rules(...lines) {
  nft(`table inet chaos {}\ndelete table inet chaos\ntable inet chaos {\nchain out {\ntype filter hook output priority 0;\n${lines.join('\n')}\n}\n}\n`);
}

export async function network(world) {
  const { cluster, figures, seed, expect } = world;
  const clients = cluster.nodes.map((node) => new URL(cluster.url('x', node)).port);
  const [, second, third] = cluster.nodes;
  await cluster.stop(third);
  process.env.CLUSTER_GROUP = String(GROUP);
  await cluster.start(third);
  delete process.env.CLUSTER_GROUP;
  const load = await new Load(cluster, { name: 'network', seed, rooms: 6, gapMs: 100, cuts: 0 }).start();
  const back = async (name, msMax) => {
    const tookMs = await load.recovered();
    figures[name] = tookMs === null ? 'never' : Math.round(tookMs);
    expect(tookMs !== null && tookMs <= msMax, `${name}: ${figures[name]}, at most ${msMax}`);
  };

  await sleep(3_000);
  figures.delay_p99_ms = Math.round(load.ledger.delay(0.99));
  load.ledger.mark();
  rules(`tcp dport { ${clients} } numgen random mod 100 < 5 drop`, `tcp sport { ${clients} } numgen random mod 100 < 5 drop`);
  await sleep(20_000);
  figures.delay_p99_with_5_percent_loss_ms = Math.round(load.ledger.delay(0.99));

  const backends = `{ ${cluster.redisPort('redis1')}, ${cluster.port + 50} }`;
  const on = load.clients.filter((client) => client.node === third);
  const acks = () => on.reduce((sum, client) => sum + client.acks.size, 0);
  rules(`meta skgid ${GROUP} tcp dport ${backends} ct mark set 1`, 'ct mark 1 drop');
  await sleep(3_000); // what was under way is answered one way or the other
  const [ackedBefore, refusedBefore] = [acks(), load.ledger.count.refused];
  await sleep(7_000);
  expect(acks() === ackedBefore, `${acks() - ackedBefore} publishes by ${third} were acked while it was parted from Redis and Cassandra`);
  figures.refused_by_parted_node = load.ledger.count.refused - refusedBefore;
  figures.parted_clients = on.length;
  expect(figures.refused_by_parted_node > 0, `no publish was refused by ${third}, with ${on.length} clients`);
  const [, ready] = await cluster.get(third, '/readyz');
  expect(ready.status === 'degraded', `${third} is parted from Redis and Cassandra, and /readyz says ${ready.status}`);
  rules();
  await back('back_after_backend_partition_ms', 8_000);

  const vanishedBefore = await cluster.metric(second, 'peers_vanished_total');
  const held = load.clients.filter((client) => client.node === second && client.socket).length;
  rules(`tcp dport ${clients[1]} drop`, `tcp sport ${clients[1]} drop`);
  const foundMs = await until(async () => await cluster.metric(second, 'peers_vanished_total') - vanishedBefore >= held, 30_000);
  figures.dead_peers_found_ms = foundMs === null ? 'never' : Math.round(foundMs);
  expect(foundMs !== null && foundMs <= 2 * 5_000 + 1_500, `${held} dead peers were found after ${figures.dead_peers_found_ms} ms; two ping periods are 10 s`);
  rules();
  await back('back_after_client_partition_ms', 10_000);

  execFileSync('tc', 'qdisc add dev lo root handle 1: htb default 1 r2q 1000'.split(' '));
  execFileSync('tc', 'class add dev lo parent 1: classid 1:1 htb rate 10gbit'.split(' '));
  execFileSync('tc', 'class add dev lo parent 1: classid 1:2 htb rate 1mbit'.split(' '));
  rules(`tcp sport { ${clients} } meta priority set 1:2`);
  load.ledger.mark();
  await sleep(15_000);
  figures.delay_p99_at_1_mbit_ms = Math.round(load.ledger.delay(0.99));
  execFileSync('tc', 'qdisc del dev lo root'.split(' '));
  rules();
  await back('back_after_1_mbit_ms', 15_000);
  figures.closes = JSON.stringify(load.ledger.closes);
  await world.finish(load, 60_000);
}
