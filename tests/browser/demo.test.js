// The demo page in a real Chromium against the real server: two people chat, see each other type, come, go and read, page back
// through history, cut a connection, and live through kill -9 of the server. Screenshots go to target/screenshots/.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { Client } from '../client.js';
import { Server, TARGET, sleep } from '../server.js';

const SHOTS = path.join(TARGET, 'screenshots');
const CHROMIUM = process.env.CHROMIUM_BIN ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((file) => existsSync(file));
const WAIT_MS_MAX = 20_000;
const STABLE_MS = 6_000;
const DESKTOP = { viewport: { width: 1280, height: 800 } };
const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

let server, browser;
const faults = []; // exceptions in a page, and what its policy refused; a server that is down or starting is no fault of the page

before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  server = await (await Server.create(['limits.messages_per_second_max=0'])).start(); // one test writes history faster than a person may
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(async () => {
  await browser?.close();
  await server?.end();
});

/** A person at a browser of their own, with the page open in a room. */
class Person {
  static async open(name, room, options = DESKTOP) {
    const person = new Person();
    person.name = name;
    person.context = await browser.newContext({ colorScheme: 'light', reducedMotion: 'reduce', ...options });
    person.page = await person.context.newPage();
    person.page.setDefaultTimeout(WAIT_MS_MAX);
    person.page.on('pageerror', (error) => faults.push(`${name}: ${error.stack}`));
    person.page.on('console', (line) => { if (line.type() === 'error' && !/^Failed to load resource|^WebSocket connection/.test(line.text())) faults.push(`${name}: ${line.text()}`); });
    await person.page.goto(`${server.http}/?name=${encodeURIComponent(name)}&room=${room}`);
    await person.online();
    return person;
  }

  close() { return this.context.close(); }
  shot(file) { return this.page.screenshot({ path: path.join(SHOTS, `${file}.png`) }); }
  state(state) { return this.page.waitForSelector(`#status[data-state="${state}"]`); }
  online() { return this.state('online'); }
  async say(text) {
    await this.page.fill('#text', text);
    await this.page.press('#text', 'Enter');
  }
  /** Waits until `check`, run in the page with `argument`, is true. */
  until(check, argument) { return this.page.waitForFunction(check, argument); }
  sees(text) { return this.until((wanted) => [...document.querySelectorAll('.scroller:not([hidden]) .messages .content')].some((content) => content.textContent === wanted), text); }
  shows(selector, text) { return this.until(([where, wanted]) => document.querySelector(where)?.textContent.includes(wanted), [selector, text]); }
  /** The messages of the open room as they stand there. */
  messages() {
    return this.page.$$eval('.scroller:not([hidden]) .messages .message', (all) => all.map((message) => ({
      seq: Number(message.dataset.seq), epoch: Number(message.dataset.epoch), id: message.dataset.messageId, text: message.querySelector('.content').textContent,
    })));
  }
  outboxIsEmpty() { return this.until(() => document.querySelectorAll('.outbox .message').length === 0); }
}

function assertInOrderOnce(messages, who) {
  const ids = new Set(messages.map((message) => message.id));
  assert.equal(ids.size, messages.length, `${who} shows a message twice`);
  for (let at = 1; at < messages.length; at++) assert.ok(messages[at].seq > messages[at - 1].seq, `${who} shows seq ${messages[at].seq} after ${messages[at - 1].seq}`);
}

async function publish(user, room, count, text) {
  const client = await Client.connect(server, user);
  for (let n = 1; n <= count; n++) await client.publish(room, text(n), `${user}-${n}`);
  await client.end();
}

test('two people see each other come, type, write, read and go', async () => {
  const ada = await Person.open('Ada Lovelace', 'browser-chat');
  const ben = await Person.open('Ben', 'browser-chat');
  await ada.page.waitForSelector('#people [data-presence="here"] >> text="Ben"');
  await ben.page.waitForSelector('#people [data-presence="here"] >> text="Ada Lovelace"');

  await ada.page.locator('#text').pressSequentially('Good');
  await ben.shows('#typing', 'Ada Lovelace is typing');
  await ada.say('Good morning');
  await ben.sees('Good morning');
  await ben.until(() => document.querySelector('#typing').textContent === '');
  await ada.page.waitForSelector('.message.mine[data-tick="read"]');
  await ada.shows('.readers', 'Read by Ben');

  await ben.say('Good morning, Ada');
  await ada.sees('Good morning, Ada');
  await ada.page.locator('#text').pressSequentially('half a thou');
  await ben.shows('#typing', 'is typing');
  await ben.until(() => document.querySelector('#typing').textContent === ''); // she stopped, nothing was sent
  assert.deepEqual((await ada.messages()).map((message) => message.text), ['Good morning', 'Good morning, Ada']);
  assert.deepEqual(await ada.messages(), await ben.messages());

  await ben.close();
  await ada.page.waitForSelector('#people [data-presence="offline"] >> text="Ben"');
  await ada.close();
});

test('an unread badge counts what came into another room', async () => {
  const ada = await Person.open('Ada', 'browser-here');
  await ada.page.fill('#add-room input', 'browser-there');
  await ada.page.press('#add-room input', 'Enter');
  await ada.shows('#room-title', 'browser-there');
  await ada.page.click('.room[data-room="browser-here"]');
  await publish('ben', 'browser-there', 3, (n) => `over there ${n}`);
  await ada.shows('.room[data-room="browser-there"] .badge', '3');
  await ada.until(() => document.title.startsWith('(3)'));
  await ada.page.click('.room[data-room="browser-there"]');
  await ada.sees('over there 3');
  await ada.until(() => !document.querySelector('.badge'));
  await ada.page.fill('#add-room input', 'no {braces}');
  await ada.page.press('#add-room input', 'Enter');
  await ada.shows('#add-room-error', 'letters, digits');
  await ada.close();
});

test('scrolling up pages back through history, and what one looks at stays where it is', async () => {
  await publish('writer', 'browser-history', 170, (n) => `message ${n}`);
  const ada = await Person.open('Ada', 'browser-history');
  await ada.sees('message 170');
  assert.ok((await ada.messages()).length < 170, 'not all at once');
  const topOf = (text) => ada.page.$$eval('.scroller:not([hidden]) .message', (all, wanted) => Math.round(all.map((message) => message.querySelector('.content')).find((content) => content.textContent === wanted).getBoundingClientRect().top), text);
  let steps = 0;
  for (let oldest = (await ada.messages())[0]; oldest.seq > 1; steps++) {
    await ada.page.$eval('.scroller:not([hidden])', (scroller) => { scroller.scrollTop = 0; });
    const before = await topOf(oldest.text);
    await ada.until((seq) => Number(document.querySelector('.scroller:not([hidden]) .message').dataset.seq) < seq, oldest.seq);
    assert.ok(Math.abs((await topOf(oldest.text)) - before) <= 40, `"${oldest.text}" jumped from ${before} to ${await topOf(oldest.text)}`); // a day line may go from above it
    [oldest] = await ada.messages();
    assert.ok(steps < 20, 'history ends');
  }
  assert.ok(steps >= 2, `${steps} pages`);
  assert.deepEqual((await ada.messages()).map((message) => message.text), Array.from({ length: 170 }, (_, at) => `message ${at + 1}`));
  assertInOrderOnce(await ada.messages(), 'Ada');
  await ada.page.$eval('.scroller:not([hidden])', (scroller) => { scroller.scrollTop = 0; });
  await ada.shows('.scroller:not([hidden]) .edge', 'beginning');
  await ada.shot('history-start');
  await publish('late', 'browser-history', 1, () => 'while reading old things');
  await ada.shows('#newer', '1 new message');
  await ada.page.click('#newer');
  await ada.until(() => document.querySelector('#newer').hidden);
  await ada.close();
});

test('a cut connection resumes and says what it recovered', async () => {
  const ada = await Person.open('Ada', 'browser-cut');
  await publish('ben', 'browser-cut', 2, (n) => `before ${n}`);
  await ada.sees('before 2');
  await ada.page.click('#cut');
  await ada.state('offline');
  await ada.shows('#banner p', 'Trying again in');
  await ada.say('written while offline');
  await ada.page.waitForSelector('.outbox .message[data-tick="waiting"]');
  await publish('cleo', 'browser-cut', 3, (n) => `missed ${n}`);
  await ada.shot('cut');
  await ada.online();
  await ada.sees('written while offline');
  await ada.outboxIsEmpty();
  await ada.shows('.note', '3 missed messages recovered');
  await ada.shows('#log', '3 missed messages recovered');
  assert.deepEqual((await ada.messages()).map((message) => message.text), ['before 1', 'before 2', 'missed 1', 'missed 2', 'missed 3', 'written while offline']);
  await ada.shot('resumed');
  await ada.close();
});

test('kill -9 in the middle of a conversation: both resume by themselves, nothing lost, nothing twice, one order', async () => {
  const people = [await Person.open('Ada', 'browser-kill'), await Person.open('Ben', 'browser-kill', PHONE)];
  const said = people.map(() => []);
  let talking = true;
  const conversations = people.map(async (person, who) => {
    for (let n = 1; talking; n++) {
      const text = `${person.name} says ${n}`;
      said[who].push(text);
      await person.say(text);
      await sleep(60);
    }
  });
  for (let kill = 0; kill < 2; kill++) {
    await sleep(STABLE_MS); // a page that lost a stable connection comes back quickly; else it would back off further
    await server.kill();
    await Promise.all(people.map((person) => person.until(() => document.querySelector('#status').dataset.state !== 'online')));
    await sleep(800); // they go on writing to nobody
    await server.start();
    await Promise.all(people.map((person) => person.online()));
  }
  await sleep(1000);
  talking = false;
  await Promise.all(conversations);
  await Promise.all(people.map((person) => person.outboxIsEmpty()));
  const all = said.flat();
  for (const person of people) {
    await person.until((wanted) => document.querySelectorAll('.scroller:not([hidden]) .messages .message').length >= wanted, all.length);
    await person.shows('.note', 'Away');
  }
  const shown = await Promise.all(people.map((person) => person.messages()));
  assert.deepEqual(shown[0], shown[1], 'both show the same messages in the same order');
  assertInOrderOnce(shown[0], 'Ada');
  const texts = shown[0].map((message) => message.text);
  assert.deepEqual([...texts].sort(), [...all].sort(), 'each message once, none lost');
  for (const [who, own] of said.entries()) assert.deepEqual(texts.filter((text) => text.startsWith(people[who].name)), own, `${people[who].name}'s messages stand in the order of writing`);
  assert.ok(new Set(shown[0].map((message) => message.epoch)).size >= 2, 'the room went on in a newer epoch');
  for (const person of people) await person.until(() => !document.querySelector('.badge')); // both look at the end of it
  await people[0].shot('killed-and-resumed');
  await people[1].shot('killed-and-resumed-phone');
  await Promise.all(people.map((person) => person.close()));
});

test('what people write is text, never markup', async () => {
  const evil = '<img src=x onerror="window.broken = true"><b>bold</b>';
  const ada = await Person.open('<b>Ada</b>', 'browser-text');
  await ada.say(evil);
  await ada.sees(evil);
  const ben = await Person.open('Ben', 'browser-text');
  await ben.sees(evil);
  await ben.shows('.message .author', '<b>Ada</b>');
  for (const person of [ada, ben]) {
    assert.equal(await person.page.evaluate(() => window.broken), undefined);
    assert.equal(await person.page.$('main img, main b, aside img'), null);
    await person.close();
  }
});

test('light and dark, desktop and phone', async () => {
  const room = 'browser-looks';
  await publish('Grace Hopper', room, 4, (n) => ['Morning! The new ring driver is on the test box.', 'Nobody lost anything when I pulled the plug. Twice.', 'The order is the same for everybody, always: one sequence per room, decided once, kept through crashes and retries.', 'Try the button on the right.'][n - 1]);
  const ada = await Person.open('Ada Lovelace', room);
  const ben = await Person.open('Ben', room, { ...PHONE, colorScheme: 'dark' });
  await ben.say('Same here, from the train');
  await ada.say('How does it know where I was?');
  await ada.shows('.readers', 'Read by Ben');
  await ben.shows('.readers', 'Read by Ada');
  await ada.shot('desktop-light');
  await ben.shot('phone-dark');
  assert.equal(await ben.page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await ada.page.click('#theme');
  await ada.shot('desktop-dark');
  await ben.page.click('#menu');
  await ben.page.waitForSelector('#rooms-panel .room:visible');
  await ben.shot('phone-rooms');
  await ben.page.keyboard.press('Escape');
  await ben.page.click('#status');
  await ben.page.waitForSelector('#cut:visible');
  await ben.shot('phone-people');
  const wide = await ben.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.equal(wide, 0, 'nothing sticks out on a phone');
  await Promise.all([ada.close(), ben.close()]);
});

test('a newcomer is asked for a name, with one proposed', async () => {
  const context = await browser.newContext({ ...DESKTOP, reducedMotion: 'reduce' });
  const page = await context.newPage();
  await page.goto(`${server.http}/?room=browser-new`);
  await page.waitForSelector('#welcome[open]');
  const proposed = await page.inputValue('#name');
  assert.match(proposed, /^\w+ \w+$/);
  await page.screenshot({ path: path.join(SHOTS, 'welcome.png') });
  await page.press('#name', 'Enter');
  await page.waitForSelector('#status[data-state="online"]');
  await page.waitForSelector(`#people >> text="${proposed}"`);
  assert.match(await page.getAttribute('#second', 'href'), /\?room=browser-new$/);
  await context.close();
});

test('a server that lost its data: the page says so, shows what there is, and goes on', async () => {
  const ada = await Person.open('Ada', 'browser-wiped');
  for (let n = 1; n <= 3; n++) await ada.say(`old ${n}`);
  await ada.outboxIsEmpty();
  await server.kill();
  await ada.until(() => document.querySelector('#status').dataset.state !== 'online');
  rmSync(server.dir, { recursive: true });
  mkdirSync(server.dir);
  await server.start();
  await publish('ben', 'browser-wiped', 1, () => 'new 1');
  await ada.online();
  await ada.sees('new 1');
  await ada.shows('.note.gap', 'may be missing');
  await ada.say('new 2');
  await ada.sees('new 2');
  await ada.outboxIsEmpty();
  assert.deepEqual((await ada.messages()).map((message) => message.text), ['new 1', 'new 2']);
  await ada.close();
});

test('no page had an error', () => assert.deepEqual(faults, []));
