// The board in a real browser, over the real server.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { accessible, browse, DESKTOP, freePort, openPage, PHONE, SCREENSHOTS, serve } from "./harness.mjs";

const OPTIONS = ["--admin-api-key", "for operators", "--replicas", "2", "--threads", "1"];

let browser, closeBrowser;
before(async () => {
  ({ browser, close: closeBrowser } = await browse());
});
after(async () => {
  await closeBrowser?.();
});

function ask(server, fields) {
  return fetch(`${server.url}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages: [{ role: "user", content: "Count to a thousand." }], ...fields }),
  });
}

test("the board shows work, refusals and replicas, which an operator adds, restarts and removes", async () => {
  const port = String(await freePort());
  const server = await serve("--port", port, ...OPTIONS);
  try {
    const { page, faults, context } = await openPage(browser, `${server.url}/dashboard`, DESKTOP);
    await page.getByText("ready", { exact: true }).first().waitFor();
    const work = [ask(server, { max_tokens: 150, ignore_eos: true }), ask(server, { max_tokens: 150, ignore_eos: true })];
    assert.equal((await ask(server, { model: "nobody's <b>model</b>" })).status, 404);
    await page.getByRole("cell", { name: "nobody's <b>model</b>" }).waitFor();
    await Promise.all(work);
    await page.waitForFunction(() => document.querySelectorAll(".chart path[d^=M]").length >= 5);
    await accessible(page);
    await page.screenshot({ path: join(SCREENSHOTS, "board-desktop-light.png"), fullPage: true });
    await page.getByRole("button", { name: "Restart" }).first().click();
    await page.getByRole("button", { name: "Restart replica 0" }).click();
    const key = page.getByLabel("Key", { exact: true });
    await key.fill("for operators");
    await key.press("Enter");
    await page.locator(".changes").getByText("0: ready").waitFor();
    await page.getByRole("button", { name: "Remove" }).last().click();
    await page.getByRole("button", { name: "Remove replica 1" }).click();
    await page.locator(".changes").getByText("1: removed").waitFor();
    await page.getByText("Replica 1:").waitFor({ state: "detached" });
    await page.getByRole("button", { name: "Add a replica" }).click();
    await page.getByText("Replica 2: ready").waitFor();
    assert.deepEqual(faults, []);
    await context.close();
    const phone = await openPage(browser, `${server.url}/dashboard`, { ...PHONE, colorScheme: "dark" });
    await phone.page.getByText("Replica 2: ready").waitFor();
    await accessible(phone.page);
    await phone.page.screenshot({ path: join(SCREENSHOTS, "board-phone-dark.png"), fullPage: true });
    await server.stop("SIGKILL");
    await phone.page.getByText("The connection was lost.").waitFor();
    assert.deepEqual(phone.faults, []);
    await phone.context.close();
  } finally {
    await server.stop();
  }
});
