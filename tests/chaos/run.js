// Real processes in real trouble: three nodes, Redis (with replicas and Sentinels where asked), Cassandra, and a ledger of every
// publish, ack and delivery of every client. Started by scripts/chaos.
//
//   node chaos/run.js [--seed N] [--short] [--clients N] [SCENARIO...]
//
// A line per scenario with its figures and a verdict; exit status 1 if one failed. The seed fixes the plan (who publishes what, when,
// where clients go, when the fault strikes), not the scheduling of the machine. CLUSTER_DIR, CLUSTER_PORT: see scripts/cluster.
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { Cluster } from '../cluster.js';
import { newSeed, randomFrom } from '../ledger/random.js';
import { SCENARIOS } from './scenarios.js';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { seed: { type: 'string' }, short: { type: 'boolean', default: false }, clients: { type: 'string', default: '20000' } } });
const SEED = Number(values.seed ?? newSeed());
const VIOLATIONS_SHOWN = 10;

/** What a figure depends on. */
function surroundings() {
  const line = (file, part) => { try { return part(readFileSync(file, 'utf8')); } catch { return '?'; } };
  const commit = (() => { try { return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim(); } catch { return '?'; } })();
  return {
    seed: SEED, commit, kernel: line('/proc/sys/kernel/osrelease', (text) => text.trim()),
    cc: line('/proc/sys/net/ipv4/tcp_congestion_control', (text) => text.trim()),
    nofile: line('/proc/self/limits', (text) => /Max open files\s+\S+\s+(\S+)/.exec(text)[1]), cores: cpus().length,
  };
}

const words = (figures) => Object.entries(figures).map(([name, value]) => `${name}=${Array.isArray(value) ? value.join('/') : value}`).join(' ');

function chosen() {
  const known = SCENARIOS.map(({ name }) => name);
  for (const name of positionals) if (!known.includes(name)) throw new Error(`no scenario ${name}: there are ${known.join(', ')}`);
  if (positionals.length) return SCENARIOS.filter(({ name }) => positionals.includes(name));
  return SCENARIOS.filter(({ inShort }) => inShort || !values.short);
}

/** Runs one scenario in `cluster`; whether it held. */
async function runOne(scenario, cluster) {
  const began = performance.now();
  const figures = {};
  const faults = [];
  const world = {
    cluster, figures, seed: SEED, short: values.short, clients: Number(values.clients),
    // The short form is part of scripts/test and may share the machine: it looks for what is lost and what hangs, not for what is slow.
    patience: values.short ? 3 : 1, random: randomFrom(SEED),
    /** A bar of the scenario: what is said where it is not held. */
    expect(holds, what) { if (!holds) faults.push(what); },
    async finish(load, settleMsMax) { faults.push(...await load.finish(figures, settleMsMax)); },
  };
  try {
    await scenario.run(world);
  } catch (error) {
    faults.push(error.stack);
  }
  figures.seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`${scenario.name}: ${faults.length ? 'FAIL' : 'PASS'} ${scenario.title}: ${words(figures)} | ${words(surroundings())}`);
  for (const fault of faults.slice(0, VIOLATIONS_SHOWN)) console.log(`  ${scenario.name} ${fault}`);
  if (faults.length) {
    console.log(`  ${faults.length} faults; again with: scripts/chaos --seed ${SEED}${values.short ? ' --short' : ''} ${scenario.name}`);
    for (const node of cluster.nodes) console.log(`  the last lines of ${node}:\n${cluster.logs(node, 8).replace(/^/gm, '    ')}`);
  }
  return faults.length === 0;
}

/** Runs a scenario in a network namespace of its own, which is gone when it ends. Whether it held. */
function runApart({ name }) {
  if (process.getuid() !== 0) {
    console.log(`${name}: SKIPPED: network namespaces and nftables want root`);
    return true;
  }
  const again = [process.execPath, process.argv[1], '--seed', String(SEED), name];
  return spawnSync('unshare', ['-n', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh', ...again], { stdio: 'inherit', env: { ...process.env, CHAOS_APART: '1' } }).status === 0;
}

/** Scenarios that want the same cluster share it. */
async function main() {
  const all = chosen();
  const isApart = (scenario) => scenario.ownNetwork && !process.env.CHAOS_APART;
  const scenarios = all.filter((scenario) => !isApart(scenario));
  const wants = new Map();
  for (const scenario of scenarios) {
    const key = JSON.stringify(scenario.cluster ?? {});
    wants.set(key, [...(wants.get(key) ?? []), scenario]);
  }
  let failed = 0;
  for (const [key, group] of wants) {
    const began = performance.now();
    const cluster = await Cluster.up(JSON.parse(key));
    console.log(`chaos: a cluster ${key} is up after ${((performance.now() - began) / 1000).toFixed(1)} s in ${cluster.dir}`);
    try {
      for (const scenario of group) if (!await runOne(scenario, cluster)) failed++;
    } finally {
      await cluster.down();
    }
  }
  for (const scenario of all.filter(isApart)) if (!runApart(scenario)) failed++;
  if (!process.env.CHAOS_APART) console.log(`chaos: ${all.length - failed} of ${all.length} scenarios held; seed ${SEED}`);
  return failed;
}

try {
  process.exit(await main() ? 1 : 0);
} catch (error) {
  console.error(`chaos: ${error.stack}`);
  process.exit(1);
}
