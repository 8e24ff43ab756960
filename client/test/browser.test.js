// The file for <script> tags in a real Chromium: a page chats, and comes back by itself after kill -9 of the server.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { Server } from '../../tests/server.js';

const CHROMIUM = process.env.CHROMIUM_BIN ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((file) => existsSync(file));
const BUNDLE = fileURLToPath(new URL('../dist/roomwire.global.js', import.meta.url));

let server, browser;
before(async () => {
  server = await (await Server.create()).start();
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--no-first-run'] });
});
after(async () => {
  await browser?.close();
  await server?.end();
});

test('a page chats, and comes back after kill -9 of the server', async () => {
  const page = await browser.newPage();
  page.setDefaultTimeout(20_000);
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  await page.addScriptTag({ path: BUNDLE });
  await page.evaluate(([url, token]) => {
    const { Roomwire } = globalThis.roomwire;
    const client = new Roomwire(url, { token, backOffMs: [50, 500] });
    const room = client.room('page');
    const heard = [];
    room.on('message', ({ content }) => heard.push(content));
    Object.assign(globalThis, { client, room, heard });
  }, [`${server.ws}/ws`, await server.token('ada')]); // --dev keeps its secret, so the token stays good
  await page.waitForFunction(() => room.state === 'live');
  assert.equal(await page.evaluate(() => room.send('before').then(({ seq }) => seq)), 1);
  await server.kill();
  await page.waitForFunction(() => client.state === 'waiting' || client.state === 'connecting');
  await page.evaluate(() => { globalThis.sending = room.send('meanwhile'); });
  await server.start();
  await page.evaluate(() => globalThis.sending);
  await page.evaluate(() => room.send('after'));
  await page.waitForFunction(() => heard.length === 3);
  assert.deepEqual(await page.evaluate(() => heard), ['before', 'meanwhile', 'after']);
  assert.deepEqual(faults, []);
});
