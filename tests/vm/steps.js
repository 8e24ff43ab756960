// Steps of a run in the lab: each says what it saw, or why it failed; the next one goes on. The report is the list of them.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { LAB } from './lab.js';

export const fail = (what) => { throw new Error(what); };

/**
 * Runs the steps, { name: act }, writes `name`.json into the lab, and returns the report. With ROOMWIRE_VM_STEPS only those steps. Where the first one fails there
 * is nothing to show. `why` says more of a failure.
 */
export async function runSteps(name, steps, why = async () => '') {
  const began = Date.now(), only = process.env.ROOMWIRE_VM_STEPS?.split(',');
  const report = [];
  for (const [step, act] of Object.entries(steps)) {
    if (only && !only.includes(step)) continue;
    const at = Date.now();
    let saw = '', ok = true;
    try { saw = await act(); } catch (error) { [ok, saw] = [false, `${error.message}\n${await why().catch((nothing) => nothing.message)}`.trim()]; }
    const seconds = ((Date.now() - at) / 1000).toFixed(1);
    report.push({ name: step, ok, seconds: Number(seconds), saw });
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${seconds.padStart(6)} s  ${step}: ${saw}`);
    if (!report[0].ok) break;
  }
  const serial = readFileSync(path.join(LAB, 'n1', 'serial.log'), 'utf8');
  if (/Kernel panic|BUG:|Oops/.test(serial)) console.log('the serial log has a fault of the kernel');
  const failed = report.filter((entry) => !entry.ok).length, seconds = (Date.now() - began) / 1000;
  writeFileSync(path.join(LAB, `${name}.json`), `${JSON.stringify({ seconds, report }, null, 1)}\n`);
  console.log(`\n${report.length - failed} passed, ${failed} failed in ${seconds.toFixed(0)} s`);
  return report;
}

/** Writes the report into `dir`, for people and for programs; not one of some of the steps. */
export function keepReport(dir, name, title, report) {
  if (process.env.ROOMWIRE_VM_STEPS) return;
  const command = `scripts/vm ${name}`;
  mkdirSync(dir, { recursive: true });
  writeFileSync(path.join(dir, `${name}.json`), `${JSON.stringify({ command, report }, null, 1)}\n`);
  const rows = report.map((entry) => `| ${entry.ok ? '' : 'FAILED '}${entry.name} | ${entry.saw.replace(/\n/g, ' ').replace(/\|/g, '/')} |`);
  writeFileSync(path.join(dir, `${name}.md`), `# ${title}\n\nMade by \`${command}\`.\n\n| step | what was seen |\n|---|---|\n${rows.join('\n')}\n`);
}
