// Measures what a browser makes of an answer of 8192 tokens: frames per second while it comes. Prints JSON.
// Tokens have four bytes each and come from a scripted engine, at the rate that is given (400 per second).
import { browse, DESKTOP, openPage, serveScripted } from "./tests/harness.mjs";

const TOKENS = 8192;
const SPENT = ["ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration"];
const rate = Number(process.argv[2] ?? 400);

let session;
const server = await serveScripted();
const { browser, close } = await browse();
try {
  const { page } = await openPage(browser, server.url, DESKTOP);
  session = await page.context().newCDPSession(page);
  await session.send("Performance.enable");
  await page.evaluate(() => {
    globalThis.frames_ = [];
    const note = (time) => {
      globalThis.frames_.push(time);
      requestAnimationFrame(note);
    };
    requestAnimationFrame(note);
  });
  const idle = await framesOf(page, () => page.waitForTimeout(3000));
  const composer = page.locator("#composer");
  await composer.fill(`long ${TOKENS} ${rate}`);
  const busy = await framesOf(page, async () => {
    await composer.press("Enter");
    await page.locator(".message.assistant[data-state=done]").waitFor({ timeout: 600_000 });
  });
  const blocks = await page.locator(".markdown > div").count();
  console.log(JSON.stringify({ tokens: TOKENS, rate, blocks, idle, busy }, null, 2));
} finally {
  await close();
  await server.stop();
}

/** Frames per second, and the time between two of them, while `work` runs. */
async function framesOf(page, work) {
  const first = await page.evaluate(() => globalThis.frames_.length);
  const before = await spent();
  await work();
  const after = await spent();
  const times = (await page.evaluate(() => globalThis.frames_)).slice(first);
  const gaps = times.slice(1).map((time, index) => time - times[index]);
  gaps.sort((a, b) => a - b);
  const at = (share) => Math.round(gaps[Math.floor(share * (gaps.length - 1))] * 10) / 10;
  const seconds = (times.at(-1) - times[0]) / 1000;
  return {
    seconds: Math.round(seconds * 10) / 10,
    per_second: Math.round((gaps.length / seconds) * 10) / 10,
    ms_p50: at(0.5),
    ms_p99: at(0.99),
    ms_longest: at(1),
    // Of the page's thread, for each frame.
    ...Object.fromEntries(SPENT.map((name) => [name, Math.round((1e5 * (after[name] - before[name])) / gaps.length) / 100])),
  };
}

async function spent() {
  const { metrics } = await session.send("Performance.getMetrics");
  return Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
}
