// The comparison in a real browser.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { accessible, browse, DESKTOP, openPage, PHONE, SCREENSHOTS, serveScripted } from "./harness.mjs";

let browser, closeBrowser, server;
before(async () => {
  ({ browser, close: closeBrowser } = await browse());
  server = await serveScripted();
});
after(async () => {
  await closeBrowser?.();
  await server?.stop();
});

test("one prompt, two settings, and the log probability of each token", async () => {
  const { page, faults, context } = await openPage(browser, `${server.url}/compare`, DESKTOP);
  const [first, second] = [page.getByRole("region", { name: "Answer A" }), page.getByRole("region", { name: "Answer B" })];
  await first.getByRole("combobox", { name: "Model A" }).selectOption("alias");
  await second.getByText("Sampling").click();
  await second.getByRole("spinbutton", { name: "Most tokens" }).fill("9");
  await page.getByRole("textbox", { name: "Prompt" }).fill("hello <b>");
  await page.getByRole("textbox", { name: "Prompt" }).press("Enter");
  await page.getByRole("button", { name: "Answer twice" }).waitFor();
  assert.equal(await first.locator(".tokens").innerText(), "You said: hello <b>");
  assert.equal(await second.locator(".tokens").innerText(), "You said:");
  // What comes at once has no rate: 19 tokens in 50 ms are the most that one is said of.
  const rate = /([\d,.]+) tokens\/s/.exec(await first.innerText())?.[1] ?? "0";
  assert.ok(Number(rate.replaceAll(",", "")) < 400, rate);
  await second.locator(".tokens span").nth(1).hover();
  // The scripted engine says -t/100 of token t.
  await second.getByText("o: log probability -1.110").waitFor();
  assert.equal(await second.locator(".alternatives tbody tr").count(), 5);
  await first.locator(".tokens").press("ArrowRight");
  await first.getByText("Y: log probability -0.890").waitFor();
  await accessible(page);
  await page.screenshot({ path: join(SCREENSHOTS, "compare-desktop-light.png"), fullPage: true });
  assert.deepEqual(faults, []);
  await context.close();
});

test("both answers are stopped; on a phone, in the dark", async () => {
  const { page, faults, context } = await openPage(browser, `${server.url}/compare`, { ...PHONE, colorScheme: "dark" });
  await page.getByRole("textbox", { name: "Prompt" }).fill("slow 1000");
  await page.getByRole("button", { name: "Answer twice" }).click();
  await page.locator(".tokens span").nth(20).waitFor();
  await accessible(page);
  await page.screenshot({ path: join(SCREENSHOTS, "compare-phone-dark.png"), fullPage: true });
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByText("Stopped.").nth(1).waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});
