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
export const inside = (command, msMax) => run('scripts/vm', ['ssh', '1', command], msMax);

/** The same; it has to succeed. */
export async function must(command, msMax) {
  const { status, out } = await inside(command, msMax);
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

export async function put(...files) {
  const { status, out } = await run('scripts/vm', ['put', '1', ...files]);
  if (status !== 0) throw new Error(`put: ${out}`);
}

/** The port of this machine that leads to 8080 of the lab's. */
export const clientPort = () => Number(readFileSync(path.join(LAB, 'n1', 'port'), 'utf8')) + 1;

/** A token for a user, as an application of the operator's would sign it. It outlives a jump of the lab's clock. */
export function token(secret, user) {
  const text = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${text({ alg: 'HS256', typ: 'JWT' })}.${text({ id: user, username: user, exp: Math.floor(Date.now() / 1000) + 4 * 3_600 })}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}
