// A machine of scripts/vm as the runs in it see it: commands, files, tokens, clients through its forwarded port.
import { execFile } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import { sleep } from '../server.js';

const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const LAB = process.env.ROOMWIRE_VM_DIR ?? path.join(ROOT, 'target', 'vm');
const COMMAND_MS_MAX = 600_000;
const PATIENT_TRIES_MAX = 60;

/** Runs a program on this machine. Its status is no error, its running for too long is. */
export function run(command, args, msMax = COMMAND_MS_MAX) {
  return new Promise((resolve, reject) => {
    execFile(command, args, { cwd: ROOT, timeout: msMax, maxBuffer: 64 << 20 }, (error, stdout, stderr) => {
      if (error?.killed) reject(new Error(`${command} ${args.join(' ').slice(0, 200)}: not over after ${msMax} ms`));
      else resolve({ status: error ? error.code : 0, out: `${stdout}${stderr}`.trim(), stdout: stdout.trim() });
    });
  });
}

/** Runs a shell command as root in the machine. */
export const inside = (command, msMax, node = 1) => run('scripts/vm', ['ssh', String(node), command], msMax);

/** The same; it has to succeed. */
export async function must(command, msMax, node = 1) {
  const { status, out } = await inside(command, msMax, node);
  if (status !== 0) throw new Error(`${command}: status ${status}\n${out}`);
  return out;
}

/** The same for a command that may be given again: the machine may be stopped for a while, and its clock with it. */
export async function patiently(command, msMax = 60_000) {
  for (let tries = 1; ; tries += 1) {
    try { return await must(command, msMax); } catch (error) { if (tries === PATIENT_TRIES_MAX) throw error; }
    await sleep(5_000);
  }
}

export const put = (...files) => putOn(1, ...files);

export async function putOn(node, ...files) {
  const { status, out } = await run('scripts/vm', ['put', String(node), ...files]);
  if (status !== 0) throw new Error(`put: ${out}`);
}

/** The port of this machine that leads to 8080 of the lab's. */
export const clientPort = () => forwarded(1) + 1;

/** The port of this machine that leads to 9090 of machine `node`. */
export const httpPort = (node) => forwarded(node) + 2;

const forwarded = (node) => Number(readFileSync(path.join(LAB, `n${node}`, 'port'), 'utf8'));

/** The blocks of code below a heading of docs/operations.md. What an operator is told there is what the lab runs. */
export function operations(heading) {
  const [, section] = readFileSync(path.join(ROOT, 'docs', 'operations.md'), 'utf8').split(`\n${heading}\n`);
  if (!section) throw new Error(`docs/operations.md has no "${heading}"`);
  return [...section.split(/\n#{2,3} /)[0].matchAll(/```\w+\n([\s\S]*?)```/g)].map(([, code]) => code);
}

/** What systemd and the nodes said last, for a step that failed. */
export const lastWords = async (node = 1) => (await inside("systemctl list-units --all --no-legend --no-pager 'roomwire*'; journalctl -u 'roomwire*' -o short-precise --no-pager -n 25; uptime", undefined, node)).out;

/** Settings as docs/operations.md has them, with the Redis and the Cassandra of this machine as the lab's machines reach them. */
export function outside(settings, { redis, cassandra }) {
  const said = settings.replace('redis://redis:6379', `redis://10.0.2.2:${redis}`).replace('["cass1", "cass2", "cass3"]', `["10.0.2.2:${cassandra}"]`);
  if (said.split('10.0.2.2').length !== 3) throw new Error(`docs/operations.md names Redis and Cassandra otherwise:\n${settings}`);
  return said;
}

/** A token for a user, as an application of the operator's would sign it. It outlives a jump of the lab's clock. */
export function token(secret, user) {
  const text = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${text({ alg: 'HS256', typ: 'JWT' })}.${text({ id: user, username: user, exp: Math.floor(Date.now() / 1000) + 4 * 3_600 })}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}
