// As many connections as one node can hold: `scripts/vm connections`, in the lab or, with --native, on this machine. roomwire-bench, beside the
// node, opens authenticated and joined connections step by step. What each step costs in user and kernel memory is read there; then all of
// them chat while they are held, and every ledger has to add up.
//
//   node vm/connections.js (--deb DEB | --native BINARIES --port PORT) --to N --step N --minutes M --rate R --report DIR
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { sleep } from '../server.js';
import { chart } from './chart.js';
import { lab, native } from './places.js';

const { values } = parseArgs({ options: {
  deb: { type: 'string' }, native: { type: 'string' }, port: { type: 'string' },
  to: { type: 'string' }, step: { type: 'string' }, minutes: { type: 'string' }, rate: { type: 'string' }, report: { type: 'string' },
} });
const [TO, STEP, MINUTES, RATE] = [values.to, values.step, values.minutes, values.rate].map(Number);
const place = values.native ? native({ binaries: values.native, to: TO, port: Number(values.port) }) : lab({ deb: values.deb, to: TO });
const NAME = values.native ? 'connections-native' : 'connections';
const MEMBERS = 10, SAMPLE_MS = 15_000;
// A connection that answers no ping is closed after a minute: what is held for longer has answered.
const HEARTBEAT_SECS = 30;
const DIR = place.dir;
const began = Date.now();
const say = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(0).padStart(5)} s  ${text}`);

/** Memory and sockets of the machine now, in bytes and counts. */
async function sample() {
  const text = await place.shell(`pid=${place.pid}; date +'at %s'; grep -hE '^(VmRSS|RssAnon|RssFile|RssShmem):' /proc/$pid/status; grep -E '^(MemAvailable|Slab|SUnreclaim|VmallocUsed|PageTables|KernelStack):' /proc/meminfo
    awk '/^(TCP|TCPv6|request_sock_TCP|sock_inode_cache|filp|dentry|eventpoll_epi|io_kiocb|kmalloc-[a-z0-9-]*) / {print "slab." $1, $3 * $4}' /proc/slabinfo
    awk '$1 == "TCP:" {print "tcp.inuse", $3; print "tcp.memory", $11 * 4096}' /proc/net/sockstat
    awk '{print "cpu", ($14 + $15) / 100}' /proc/$pid/stat; ps ${place.load} -o rss= | awk '{sum += $1} END {print "bench.rss", sum * 1024}'
    awk '/^Tcp: [0-9]/ {print "segments", $11 + $12; print "segments.again", $13}' /proc/net/snmp
    curl -s -m 60 http://127.0.0.1:${place.http}/metrics | grep -E '^roomwire_(connections|peers_vanished_total|messages_received_total|deliveries_total|shard_buffers_exhausted_total|shard_reads_paused_total|shard_mesh_spills_total|shard_turns_total) '; true`);
  const found = {};
  for (const line of text.split('\n')) {
    const [name, value, unit] = line.trim().split(/\s+/);
    if (name) found[name.replace(/:$/, '')] = Number(value) * (unit === 'kB' ? 1024 : 1);
  }
  return found;
}

const seconds = Math.round(MINUTES * 60);
const logged = (at) => place.shell(`tail -n 5 ${DIR}/${at}.log`);

/** Opens the connections of step `at`; they wait, answering heartbeats, until the word to chat is given. */
async function open(at, count) {
  const command = `${place.bench} fanout --addr ${place.addr} --rooms ${count / MEMBERS} --members ${MEMBERS} --publishers ${MEMBERS} --rate ${RATE * count / TO} --warm-up 5 --seconds ${seconds} --drain 60`
    + ` --sources 250 --workers ${place.workers(count)} --first-user ${at * STEP} --run-id s${at} --lag-ms-max 600000 --cpu-percent-max 100 --label step-${at} --json ${DIR}/${at}.json`
    + ` --between "touch ${DIR}/ready-${at}; until [ -e ${DIR}/go ]; do sleep 2; done"`;
  await place.open(at, count, command);
  for (;;) {
    const running = await place.runs(at);
    if ((await place.shell(`test ! -e ${DIR}/ready-${at} || echo ready`)) === 'ready') return;
    if (!running) throw new Error(`step ${at} ended: ${await logged(at)}`);
    await sleep(3_000);
  }
}

const perConnection = (to, from, name, count) => Math.round(((to[name] ?? 0) - (from[name] ?? 0)) / count);

/** What each connection has cost so far, in bytes. */
function costs(now, empty) {
  const count = now.roomwire_connections;
  return {
    connections: count,
    server_rss: perConnection(now, empty, 'VmRSS', count),
    kernel_slab_both_ends: perConnection(now, empty, 'Slab', count),
    kernel_vmalloc: perConnection(now, empty, 'VmallocUsed', count),
    load_rss: perConnection(now, empty, 'bench.rss', count),
    machine_both_ends: Math.round((empty.MemAvailable - now.MemAvailable) / count),
  };
}

async function hold(steps) {
  await place.shell(`touch ${DIR}/go`);
  const samples = [];
  const before = Number(await place.shell('date +%s'));
  for (;;) {
    samples.push(await sample());
    const running = (await Promise.all([...steps.keys()].map(place.runs))).includes(true);
    if (!running) break;
    if (samples.at(-1).at - before > seconds + 600) throw new Error('the load does not end');
    await sleep(SAMPLE_MS);
  }
  return samples.filter((one) => one.at - before <= seconds);
}

/** What the ledgers of all steps say. */
async function verdicts(steps) {
  const sum = { sent: 0, deliveries: 0, lost: 0, doubled: 0, out_of_order: 0, acks: 0, acks_lost: 0 };
  const wrong = [];
  let slowest = null;
  for (const at of steps.keys()) {
    const out = await place.shell(`cat ${DIR}/${at}.json || true`);
    if (!out.startsWith('{')) { wrong.push(`step ${at} has no report: ${await logged(at)}`); continue; }
    const { load, delivery, ...own } = JSON.parse(out);
    sum.sent += load.sent;
    sum.deliveries += load.deliveries.arrived;
    sum.lost += load.deliveries.expected - load.deliveries.arrived;
    sum.doubled += load.deliveries.doubled;
    sum.out_of_order += load.deliveries.out_of_order + load.deliveries.seq_breaks;
    sum.acks += load.acks.arrived;
    sum.acks_lost += load.acks.expected - load.acks.arrived;
    wrong.push(...[...own.void, ...own.invalid].map((what) => `step ${at}: ${what}`));
    if (!slowest || delivery.p99_ms > slowest.p99_ms) slowest = delivery;
  }
  return { sum, wrong, slowest };
}

const machine = await place.prepare();
say(machine);
const empty = await sample();
const steps = [], opened = [];
let stopped = '';
for (let open_so_far = 0, at = 0; open_so_far < TO; at += 1) {
  const count = Math.min(STEP, TO - open_so_far);
  const from = Number(await place.shell('date +%s'));
  try { await open(at, count); } catch (error) { stopped = error.message; say(`STOPPED: ${stopped}: ${JSON.stringify(await sample())}`); break; }
  const now = await sample();
  opened.push(now);
  open_so_far += count;
  steps.push({ ...costs(now, empty), seconds: now.at - from, available_mib: Math.round(now.MemAvailable / 1048576) });
  say(JSON.stringify(steps.at(-1)));
}
if (steps.length === 0) throw new Error(stopped);
say(`holding ${steps.at(-1).connections} for ${MINUTES} minutes`);
const held = await hold(steps);
const { sum, wrong, slowest } = await verdicts(steps);
const least = Math.min(...held.map((one) => one.roomwire_connections));
const [first, last] = [held[0], held.at(-1)];
const segments = Math.round((last.segments - first.segments) / (last.at - first.at));
const cpu = (last.cpu - first.cpu) / (last.at - first.at);
const slabs = Object.keys(opened.at(-1)).filter((name) => name.startsWith('slab.'));
const grown = new Map(slabs.map((name) => [name, perConnection(opened.at(-1), empty, name, steps.at(-1).connections)]).filter(([, bytes]) => bytes !== 0));
/** A sample without the slabs in which nothing happened. */
const shown = (one) => Object.fromEntries(Object.entries(one).filter(([name]) => !name.startsWith('slab.') || grown.has(name)));
const report = {
  machine, command: `scripts/vm connections ${values.native ? '--native ' : ''}--to ${TO} --step ${STEP} --minutes ${MINUTES} --rate ${RATE}`, heartbeat_secs: HEARTBEAT_SECS, stopped,
  steps, held: { seconds: last.at - first.at, connections_least: least, tcp_segments_per_second: segments, server_cores: Number(cpu.toFixed(3)), peers_vanished: last.roomwire_peers_vanished_total, ...sum, slowest_step_delivery: slowest },
  wrong, slab_bytes_per_connection: Object.fromEntries([...grown].map(([name, bytes]) => [name.slice(5), bytes])),
  samples: [empty, ...opened, ...held].map(shown),
};
mkdirSync(values.report, { recursive: true });
writeFileSync(path.join(values.report, `${NAME}.json`), `${JSON.stringify(report, null, 1)}\n`);
const line = (name, of) => ({ name, points: [[0, of(empty)], ...opened.map((now) => [now.roomwire_connections, of(now)])] });
writeFileSync(path.join(values.report, `${NAME}.svg`), chart({
  title: 'Memory against connections, one node', xTitle: 'authenticated connections, each in a room of ten', yTitle: 'MiB above the empty node',
  xLabel: (value) => `${value / 1000}K`,
  series: [
    line('server (RSS)', (now) => (now.VmRSS - empty.VmRSS) / 1048576),
    line('kernel, both ends (slab)', (now) => (now.Slab - empty.Slab) / 1048576),
    line('load (RSS)', (now) => ((now['bench.rss'] || 0) - (empty['bench.rss'] || 0)) / 1048576),
    line('all, both ends', (now) => (empty.MemAvailable - now.MemAvailable) / 1048576),
  ],
}));
say(JSON.stringify(report.held));
for (const what of wrong) say(`WRONG: ${what}`);
await place.stop();
process.exit(wrong.length || stopped || least < TO ? 1 : 0);
