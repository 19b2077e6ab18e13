// Servers and a browser for the tests.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

export const ROOT = join(import.meta.dirname, "../..");
export const SCREENSHOTS = join(ROOT, "build/screenshots");
mkdirSync(SCREENSHOTS, { recursive: true });

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** A program that says where it serves; `stop` ends it. */
function start(command, args, found, env = {}) {
  const child = spawn(command, args, { cwd: ROOT, env: { ...process.env, ...env } });
  return new Promise((resolve, reject) => {
    let said = "";
    const hear = (data) => {
      said += data;
      const address = found.exec(said)?.[1];
      if (address) resolve({ url: address, stop: (signal) => stop(child, signal) });
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    child.on("error", reject);
    child.on("exit", (status) => reject(new Error(`${command} ended with ${status}:\n${said}`)));
  });
}

async function stop(child, signal = "SIGTERM") {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill(signal);
  await ended;
}

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** The real server, with the default model. */
export async function serve(...options) {
  const model = process.env.MINISGL_TEST_MODEL;
  const args = [...(model ? ["--model", model] : []), "--kv-cache-tokens", "16K", "--drain-timeout", "0", ...options];
  return start("minisgl-serve", args, /ready after .*?(http:\/\/[\w.:]+)/);
}

/** The server over an engine that says what a test asks for. */
export async function serveScripted(options = {}) {
  const args = ["-m", "tests.python.web.scripted_server", JSON.stringify(options)];
  return start("python", args, /(http:\/\/[\w.:]+)/, { PYTHONPATH: ROOT });
}

/** A browser with nothing from earlier ones. */
export async function browse() {
  const profile = mkdtempSync(join(tmpdir(), "minisgl-browser-"));
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS,
    env: { ...process.env, HOME: profile },
  });
  return {
    browser,
    close: async () => {
      await browser.close();
      rmSync(profile, { recursive: true, force: true });
    },
  };
}

/** A page of its own, and all that went wrong in it: messages of the console, requests for other hosts. */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  const faults = [];
  page.on("console", (message) => {
    // The browser itself says so of each answer that isn't a success, and of each connection that breaks.
    const usual = /Failed to load resource|net::ERR_/.test(message.text());
    if (["error", "warning"].includes(message.type()) && !usual) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(new URL(url).origin)) faults.push(`a request for ${request.url()}`);
  });
  await page.goto(url);
  return { page, context, faults };
}

export const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };
export const DESKTOP = { viewport: { width: 1280, height: 800 } };

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** That axe finds nothing. The policy keeps scripts out of the page, but not those of the browser's debugger. */
export async function accessible(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.map(({ id, nodes }) => [id, nodes.map(({ target, failureSummary }) => [target, failureSummary])]);
  assert.deepEqual(found, []);
}
