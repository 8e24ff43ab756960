// Steps of a run in the lab: each says what it saw, or why it failed; the next one goes on. The report is the list of them.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { LAB } from './lab.js';

export const fail = (what) => { throw new Error(what); };

/** Runs the steps, { name: act }, writes `name`.json into the lab, and returns the report. With ROOMWIRE_VM_STEPS only those steps. */
export async function runSteps(name, steps) {
  const began = Date.now(), only = process.env.ROOMWIRE_VM_STEPS?.split(',');
  const report = [];
  for (const [step, act] of Object.entries(steps)) {
    if (only && !only.includes(step)) continue;
    const at = Date.now();
    let saw = '', ok = true;
    try { saw = await act(); } catch (error) { [ok, saw] = [false, error.message]; }
    const seconds = ((Date.now() - at) / 1000).toFixed(1);
    report.push({ name: step, ok, seconds: Number(seconds), saw });
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${seconds.padStart(6)} s  ${step}: ${saw}`);
  }
  const serial = readFileSync(path.join(LAB, 'n1', 'serial.log'), 'utf8');
  if (/Kernel panic|BUG:|Oops/.test(serial)) console.log('the serial log has a fault of the kernel');
  const failed = report.filter((entry) => !entry.ok).length, seconds = (Date.now() - began) / 1000;
  writeFileSync(path.join(LAB, `${name}.json`), `${JSON.stringify({ seconds, report }, null, 1)}\n`);
  console.log(`\n${report.length - failed} passed, ${failed} failed in ${seconds.toFixed(0)} s`);
  return report;
}
