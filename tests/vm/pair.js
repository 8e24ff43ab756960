// Two machines, a node on each, HAProxy before them and Prometheus beside them: `scripts/vm pair`. It follows docs/operations.md from the package to a tuned,
// monitored and balanced cluster and to its upgrade. Redis, Cassandra and Prometheus run on this machine. Clients with a ledger chat through the balancer, and
// others knock, while a node is drained, killed, and the package replaced on one machine after the other.
//
//   node vm/pair.js --old OLD.deb --new NEW.deb --redis PORT --cassandra PORT --prometheus PORT --report DIR
import { spawn } from 'node:child_process';
import { mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { until } from '../cluster.js';
import { Chat, knocked, quietly } from './chat.js';
import { LAB, httpPort, lastWords, must, operations, outside, putOn } from './lab.js';
import { fail, keepReport, runSteps } from './steps.js';

const { values } = parseArgs({ options: {
  old: { type: 'string' }, new: { type: 'string' }, redis: { type: 'string' }, cassandra: { type: 'string' }, prometheus: { type: 'string' }, report: { type: 'string' },
} });
const NODES = [1, 2], CONNECTIONS = 10_000, KNOCKERS = 8;
const ENV = '(set -a; . /etc/roomwire/roomwire.env;';
const CONFIG = '--config /etc/roomwire/roomwire.toml';
const DOCS = new URL('../../docs/', import.meta.url);

const chat = new Chat();
const on = (node, command) => must(command, undefined, node);
const onBoth = (command) => Promise.all(NODES.map((node) => on(node, command)));
let secret = '', prometheus;

/** Bus and store as docs/operations.md has them; clients and HTTP on the network of the two machines, port 9090 for this one, too. */
function config(node) {
  const [block] = operations('### An upgrade that refuses nobody');
  const shared = outside(block, values).split('\n').filter((line) => /^(bus|store)\./.test(line)).join('\n');
  return `listen.addr = "10.99.0.${node}:8080"\nhttp.addr = "0.0.0.0:9090"\n${shared}\n`;
}

/** The sample, with the addresses of these machines. HAProxy is on the first one, at the address to which its port 8080 is forwarded. */
function balancer() {
  const sample = readFileSync(new URL('samples/haproxy.cfg', DOCS), 'utf8');
  return sample.replace('bind 0.0.0.0:8080', 'bind 10.0.2.15:8080').replace('10.0.0.11', '10.99.0.1').replace('10.0.0.12', '10.99.0.2').replace(/.*server node3.*\n/, '');
}

/** Prometheus with the scrape job of docs/operations.md and the rules of docs/monitoring, which it looks at every 15 s, not every minute. */
function startPrometheus() {
  const dir = path.join(LAB, 'prometheus');
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true });
  const job = operations('## Metrics').find((code) => code.includes('scrape_configs')) ?? fail('docs/operations.md has no scrape job any more');
  const targets = NODES.map((node) => `"127.0.0.1:${httpPort(node)}"`).join(', ');
  writeFileSync(path.join(dir, 'prometheus.yml'), `global: { evaluation_interval: 15s }\n${job.replace(/targets: \[.*?\]/, `targets: [${targets}]`)}`);
  writeFileSync(path.join(dir, 'alerts.yml'), readFileSync(new URL('monitoring/alerts.yml', DOCS)));
  const log = openSync(path.join(dir, 'log'), 'a');
  prometheus = spawn('prometheus', [`--config.file=${dir}/prometheus.yml`, `--storage.tsdb.path=${dir}/data`, `--web.listen-address=127.0.0.1:${values.prometheus}`], { stdio: ['ignore', log, log] });
  prometheus.on('error', () => {}); // asking it tells
}

const api = async (route) => (await (await fetch(`http://127.0.0.1:${values.prometheus}/api/v1/${route}`)).json()).data;

/** What Prometheus answers to a query: { node: value }. */
async function asked(query) {
  const { result } = await api(`query?query=${encodeURIComponent(query)}`);
  const names = Object.fromEntries(NODES.map((node) => [`127.0.0.1:${httpPort(node)}`, `n${node}`]));
  return Object.fromEntries(result.map(({ metric, value }) => [names[metric.instance], Number(value[1])]));
}

const firing = async () => (await api('alerts')).alerts.filter(({ state }) => state === 'firing').map(({ labels }) => labels.alertname).sort();

const metric = (name) => onBoth(`curl -s http://127.0.0.1:9090/metrics | sed -n 's/^roomwire_${name} //p'`);
const seesBoth = async () => (await metric('cluster_nodes')).every((count) => count === '2');
const bothServe = async () => { if (await until(seesBoth, 90_000, 1_000) === null) fail('a node does not know of two'); };

/** What doctor says of a machine: its last line, its exit status, and what is not as it should be. */
async function doctor(node) {
  const lines = (await on(node, `${ENV} roomwire doctor ${CONFIG} --connections ${CONNECTIONS}); echo $?`)).split('\n');
  const [sum, status] = lines.slice(-2);
  const off = lines.filter((line) => /^(LIMITS|FAILS|\?) /.test(line)).map((line) => line.replace(/:.*/, '').replace(/ +/, ' '));
  return { status: Number(status), limits: Number(sum.match(/(\d+) limit it/)[1]), said: `"${sum}", status ${status} (${off.join(', ')})` };
}

const STEPS = {
  async install() {
    const said = [];
    for (const node of NODES) {
      await putOn(node, values.old, values.new);
      await on(node, `cd /root && apt-get install -y ./${path.basename(values.old)}`);
      const other = 3 - node;
      said.push(`n${node} reaches n${other}: ${await on(node, `timeout 20 bash -c 'exec 3<>/dev/tcp/n${other}/22 && head -n 1 <&3'`)}`);
    }
    return `${said.join('; ')}; ${await on(1, '. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores; $(roomwire version)"')}`;
  },

  async configure() {
    // One secret for both; under emulation a watchdog would judge the emulator, and now nothing waits for a drain of 30 s.
    secret = (await on(1, 'cat /etc/roomwire/roomwire.env')).match(/^JWT_SECRET=(.+)$/m)[1];
    for (const node of NODES) {
      await on(node, `sed -i 's|^JWT_SECRET=.*|JWT_SECRET=${secret}|' /etc/roomwire/roomwire.env && echo ROOMWIRE_DRAIN__SECS=8 >>/etc/roomwire/roomwire.env && printf '%s' '${config(node)}' >/etc/roomwire/roomwire.toml
        mkdir -p /etc/systemd/system/roomwire.service.d && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=0\\n' >/etc/systemd/system/roomwire.service.d/lab.conf && systemctl daemon-reload`);
    }
    return (await onBoth(`${ENV} roomwire check-config ${CONFIG})`)).join('; ');
  },

  migrate: () => on(1, `${ENV} roomwire store migrate --replication 1 ${CONFIG})`),

  async doctor_and_tuning() {
    const before = await doctor(1);
    await onBoth(`roomwire-tuning apply --connections ${CONNECTIONS} && roomwire-tuning persist`);
    const after = await doctor(1);
    const said = `${before.said} before, ${after.said} after`;
    return after.status === 78 || after.limits >= before.limits ? fail(said) : said;
  },

  async start() {
    await onBoth('systemctl enable --now roomwire');
    await bothServe();
    return `each knows of two nodes; "${(await onBoth('systemctl show roomwire -p StatusText --value')).join('", "')}"`;
  },

  async balancer() {
    await on(1, `printf '%s' '${balancer()}' >/etc/haproxy/haproxy.cfg && haproxy -c -f /etc/haproxy/haproxy.cfg && systemctl restart haproxy`);
    await chat.start(secret);
    await chat.areOn(['n1', 'n2']);
    return `${await on(1, 'haproxy -v | head -n 1')}: clients on ${JSON.stringify(chat.nodes())}`;
  },

  async monitoring() {
    startPrometheus();
    if (await until(async () => Object.keys(await asked('roomwire_build_info')).length === 2, 120_000, 1_000) === null) fail('Prometheus does not scrape both');
    const alerts = (await api('rules')).groups.flatMap((group) => group.rules);
    return `Prometheus scrapes ${JSON.stringify(await asked('up{job="roomwire"}'))}, roomwire_cluster_nodes ${JSON.stringify(await asked('roomwire_cluster_nodes'))}, roomwire_capacity_used_ratio ${JSON.stringify(await asked('roomwire_capacity_used_ratio'))}; ${alerts.length} rules, ${JSON.stringify(await firing())} firing`;
  },

  async drain() {
    const said = await quietly(secret, KNOCKERS, async () => {
      await on(2, 'systemctl stop roomwire');
      await chat.areOn(['n1']);
      await chat.recovered();
    });
    await on(2, 'systemctl start roomwire');
    await bothServe();
    return `n2 stopped: ${said}; all went on at n1; n2 started again`;
  },

  // Who is being greeted by a node that is killed is cut off, like everybody on it; who comes then must be let in.
  async kill() {
    let downMs = 0;
    const { said } = await knocked(secret, KNOCKERS, async () => {
      const at = Date.now();
      // Stopped while systemd waits to start it again.
      await on(1, 'systemctl kill -s KILL roomwire; systemctl stop roomwire');
      await chat.areOn(['n2']);
      await chat.recovered();
      downMs = Date.now() - at;
    });
    const firedMs = await until(async () => (await firing()).includes('RoomwireDown'), 150_000, 1_000) ?? fail(`at Prometheus ${JSON.stringify(await firing())} fires`);
    const fire = JSON.stringify(await firing());
    const late = await quietly(secret, KNOCKERS, () => chat.recovered());
    await on(1, 'systemctl reset-failed roomwire; systemctl start roomwire');
    await bothServe();
    return `n1 killed: within ${downMs} ms all went on at n2; ${said}; then ${late}; ${fire} fire ${Math.round(firedMs / 1_000)} s later; n1 started again, each knows of two nodes; roomwire_cluster_nodes_reaped_total, after a drain and a kill: ${(await metric('cluster_nodes_reaped_total')).join(' and ')}`;
  },

  async upgrade() {
    const said = await quietly(secret, KNOCKERS, async () => {
      for (const node of NODES) {
        await on(node, `cd /root && apt-get install -y ./${path.basename(values.new)}`);
        await bothServe();
        await chat.recovered();
      }
    });
    return `${(await onBoth("dpkg-query -W -f '${Version}' roomwire")).join(', ')} on n1, n2: ${said}`;
  },

  ledger: () => chat.verdict(),
};

const report = await runSteps('pair', STEPS, async () => `${await lastWords(1)}\n${await lastWords(2)}`);
prometheus?.kill();
keepReport(values.report, 'pair', 'Two machines in the lab', report);
process.exit(report.some((entry) => !entry.ok) ? 1 : 0);
