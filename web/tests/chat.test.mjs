// The chat in a real browser.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { accessible, browse, DESKTOP, freePort, openPage, PHONE, SCREENSHOTS, serve, serveScripted } from "./harness.mjs";

let browser, closeBrowser, scripted;
before(async () => {
  ({ browser, close: closeBrowser } = await browse());
  scripted = await serveScripted();
});
after(async () => {
  await closeBrowser?.();
  await scripted?.stop();
});

const composer = (page) => page.locator("#composer");
const answers = (page) => page.locator(".message.assistant");
async function send(page, text) {
  await composer(page).fill(text);
  await composer(page).press("Enter");
}
async function ended(page, state = "done") {
  await page.locator(`.message.assistant[data-state=${state}]`).last().waitFor();
}

/** Sets how many tokens an answer may have. */
async function allow(page, tokens) {
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("spinbutton", { name: "Most tokens" }).fill(tokens);
  await page.keyboard.press("Escape");
}

test("a chat with the default model, whose server dies and comes back under a stream", async () => {
  const port = String(await freePort());
  let server = await serve("--port", port);
  try {
    const { page, faults, context } = await openPage(browser, server.url, DESKTOP);
    await allow(page, "40");
    await send(page, "What is gravity?");
    await ended(page);
    const first = await answers(page).innerText();
    assert.ok(first.length > 40, first);
    assert.match(await page.locator(".figures").innerText(), /tokens\/s · \d+ tokens · first token after \d+ ms · prompt: \d+ tokens/);
    await allow(page, "");
    await send(page, "Write a very long story about the sea, with many chapters.");
    await page.locator(".message.assistant[data-state=open] .markdown").waitFor();
    await server.stop("SIGKILL");
    await page.getByText("The connection was lost.").waitFor();
    const until = (await answers(page).last().locator(".markdown").innerText()).trimEnd();
    server = await serve("--port", port);
    await page.getByText("The connection was lost.").waitFor({ state: "detached" });
    await page.waitForFunction(
      (length) => [...document.querySelectorAll(".message.assistant .markdown")].at(-1).innerText.length > length + 20,
      until.length,
    );
    await page.getByRole("button", { name: "Stop" }).click();
    await ended(page, "stopped");
    const all = await answers(page).last().locator(".markdown").innerText();
    assert.ok(all.startsWith(until.slice(0, -20)), "it goes on where it stopped");
    await page.getByRole("button", { name: "Go on" }).waitFor();
    assert.deepEqual(faults, []);
    await context.close();
  } finally {
    await server.stop();
  }
});

test("an answer is stopped, gone on with, made again, and its question edited", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "slow 60");
  await page.getByText("5 6 7").waitFor();
  await page.keyboard.press("Escape");
  await ended(page, "stopped");
  await page.getByRole("button", { name: "Go on" }).click();
  await ended(page);
  assert.equal(await answers(page).locator(".markdown").innerText(), [...Array(60).keys()].join(" "));
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.getByText("2 of 2").waitFor();
  await page.keyboard.press("Escape");
  await ended(page, "stopped");
  await page.getByRole("button", { name: "Previous version" }).click();
  await ended(page);
  await page.locator(".message.user").getByRole("button", { name: "Edit" }).click();
  await page.getByRole("textbox", { name: "Edit" }).fill("another question");
  await page.getByRole("textbox", { name: "Edit" }).press("Enter");
  await page.getByText("You said: another question").waitFor();
  await page.locator(".message.user").getByRole("button", { name: "Previous version" }).click();
  await page.locator(".message.user").getByText("slow 60", { exact: true }).waitFor();
  await page.locator(".message.assistant").getByText("2 of 2").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("a reload in mid-answer", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "slow 100");
  await page.getByText("19 20 21").waitFor();
  await page.reload();
  await ended(page);
  assert.equal(await answers(page).locator(".markdown").innerText(), [...Array(100).keys()].join(" "));
  // What came before the reload and after it count together.
  assert.match(await page.locator(".figures").innerText(), /tokens/);
  assert.deepEqual(faults, []);
  await context.close();
});

test("an answer of 8192 tokens is drawn as it would be at once", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "long 8192 4000");
  await ended(page);
  const drawn = () => page.locator(".markdown").innerHTML();
  await page.waitForFunction(() => document.querySelectorAll("math").length > 100);
  const grown = await drawn();
  assert.ok(grown.length > 40_000);
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll("math").length > 100);
  assert.equal(await drawn(), grown);
  assert.deepEqual(faults, []);
  await context.close();
});

test("what answers and names may hold does nothing", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, 'hostile <img src=x onerror="document.title=1">');
  await ended(page);
  await page.waitForTimeout(300); // formulas and colours come later
  assert.equal(await page.title(), "minisgl: chat");
  const { scripts, links } = await page.evaluate(() => ({
    scripts: document.querySelectorAll("#app :is(script, img, iframe, form[action], style, [onerror], [onload], [style])").length,
    links: [...document.querySelectorAll(".markdown a")].map((one) => one.href),
  }));
  assert.equal(scripts, 0);
  assert.deepEqual(links.filter((one) => !/^https?:/.test(one)), []);
  assert.deepEqual(faults, []);
  await context.close();
});

test("what can't be read as Markdown is shown as it was written", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "deep 12000");
  await ended(page);
  const drawn = await answers(page).locator(".markdown").innerText();
  assert.ok(drawn.trim() === `${">".repeat(12000)} bottom`, drawn.slice(0, 80));
  await page.reload();
  await answers(page).getByText("> bottom").waitFor();
  await send(page, "hello again");
  await page.getByText("You said: hello again").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("a file of conversations may hold anything", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  const take = (content) =>
    page.locator(".sidebar input[type=file]").setInputFiles([{ name: "a.json", mimeType: "application/json", buffer: Buffer.from(content) }]);
  for (const content of ["", "null", "5", '{"format": "minisgl-conversations", "version": 1, "conversations": {}}']) {
    await take(content);
    await page.getByText("This isn't a file of exported conversations.").waitFor();
    await take('{"format": "minisgl-conversations", "version": 1, "conversations": [], "messages": []}');
    await page.getByText("Conversations added: 0").waitFor();
  }
  const strange = '{"__proto__": {"polluted": 1}, "constructor": null, "type": "script"}';
  const settings = `{"sampling": null, "tools": 5, "system": ${strange}, "stop": [], "seed": {}, "__proto__": {"polluted": 1}}`;
  const conversation = `{"id": "a", "title": "<img src=x onerror=document.title=1>", "leaf": "2", "settings": ${settings}}`;
  const messages = [
    `{"id": "1", "conversation": "a", "parent": "2", "role": "system", "content": ${strange}, "files": [null, ${strange}]}`,
    `{"id": "2", "conversation": "a", "parent": "1", "role": "assistant", "content": "[here](javascript:alert(1)) **bold**", "state": "done", "created": 1,
      "calls": [5, {"id": ${strange}, "name": ${strange}, "arguments": 1}], "figures": {"tokens": 7, "promptTokens": null}, "error": ${strange}}`,
    `{"id": "3", "conversation": "a", "parent": "1", "role": "assistant", "content": "other", "state": "open", "created": 2, "files": "no", "calls": "no"}`,
    "null",
    strange,
  ];
  await take(`{"format": "minisgl-conversations", "version": 1, "conversations": [${conversation}, null], "messages": [${messages}]}`);
  await page.getByText("Conversations added: 2").waitFor();
  await page.getByRole("link", { name: "<img src=x" }).click();
  await page.locator("strong").getByText("bold").waitFor();
  assert.equal(await page.locator(".markdown a").count(), 0);
  await page.getByRole("button", { name: "Next version" }).click();
  await page.locator(".markdown").getByText("other").waitFor();
  await page.getByRole("button", { name: "Previous version" }).last().click(); // the first messages are each other's parents
  await send(page, "hello there");
  await page.getByText("You said: hello there").waitFor();
  assert.equal(await page.evaluate(() => ({}).polluted), undefined);
  assert.equal(await page.title(), "minisgl: chat");
  assert.deepEqual(faults, []);
  await context.close();
});

test("nothing stays of a conversation that is removed while its answer comes", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "slow 100");
  await page.getByText("5 6 7").waitFor();
  await page.locator(".conversations li").hover();
  await page.getByRole("button", { name: "Remove slow 100" }).click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.locator(".conversations li").waitFor({ state: "detached" });
  await page.waitForTimeout(1000);
  const waiting = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  const { conversations, messages } = JSON.parse(readFileSync(await (await waiting).path(), "utf8"));
  assert.deepEqual([conversations, messages], [[], []]);
  assert.deepEqual(faults, []);
  await context.close();
});

test("a file is dropped in; a text that is dragged is the browser's own matter", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await page.getByText("runs on this server").waitFor();
  const drop = (asFile) =>
    page.evaluate((file) => {
      const dataTransfer = new DataTransfer();
      if (file) dataTransfer.items.add(new File(["dropped"], "<b>notes</b>.txt"));
      else dataTransfer.setData("text/plain", "words");
      const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
      document.getElementById("composer").dispatchEvent(event);
      return event.defaultPrevented;
    }, asFile);
  assert.equal(await drop(false), false);
  assert.equal(await drop(true), true);
  await page.getByText("<b>notes</b>.txt").waitFor();
  await send(page, "hello");
  await page.locator(".message.user details").getByText("<b>notes</b>.txt").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("Markdown, code, formulas; phone and desktop, light and dark; nothing that axe finds", async () => {
  for (const [name, device] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    for (const colorScheme of ["light", "dark"]) {
      const { page, faults, context } = await openPage(browser, scripted.url, { ...device, colorScheme });
      await accessible(page);
      await page.screenshot({ path: join(SCREENSHOTS, `chat-${name}-${colorScheme}-empty.png`) });
      await send(page, "showcase of everything");
      await ended(page);
      await page.locator("math").first().waitFor();
      await page.locator(".hljs-keyword").first().waitFor();
      assert.equal(await page.locator(".markdown table").count(), 1);
      await accessible(page);
      await page.screenshot({ path: join(SCREENSHOTS, `chat-${name}-${colorScheme}.png`) });
      await page.getByRole("button", { name: "Settings" }).click();
      await accessible(page);
      await page.screenshot({ path: join(SCREENSHOTS, `settings-${name}-${colorScheme}.png`) });
      await page.keyboard.press("Escape");
      if (name === "phone") {
        await page.getByRole("button", { name: "Conversations" }).click();
        await page.getByRole("button", { name: "New chat" }).waitFor();
        await page.screenshot({ path: join(SCREENSHOTS, `sidebar-${name}-${colorScheme}.png`) });
      }
      assert.deepEqual(faults, []);
      await context.close();
    }
  }
});

test("a thought is folded, and a call of a tool is shown and answered", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  const parameters = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } };
  const tools = [{ type: "function", function: { name: "add", parameters } }];
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByText("Tools", { exact: true }).click();
  const field = page.getByRole("textbox", { name: "A JSON list of functions" });
  await field.fill("not JSON");
  await page.getByText("This isn't a JSON list.").waitFor();
  await field.fill(JSON.stringify(tools));
  await page.keyboard.press("Escape");
  await send(page, "add one and two");
  await page.locator(".calls summary").getByText("add").waitFor();
  await ended(page);
  assert.match(await page.locator(".calls pre").innerText(), /"a": 1,\s+"b": 2/);
  assert.equal(await page.getByText("Two numbers are to be added.").isVisible(), false);
  await page.getByText("Thought").click();
  await page.getByText("Two numbers are to be added.").waitFor();
  await accessible(page);
  await page.screenshot({ path: join(SCREENSHOTS, "tools-desktop-light.png") });
  const asked = page.waitForRequest(/chat\/completions/);
  await page.getByRole("textbox", { name: "Result of add" }).fill("3");
  await page.getByRole("textbox", { name: "Result of add" }).press("Enter");
  const { messages, tools: sent } = (await asked).postDataJSON();
  assert.deepEqual(sent, tools);
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "tool"]);
  assert.equal(messages[2].tool_call_id, messages[1].tool_calls[0].id);
  await page.getByText("The sum is 3.").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("sampling, a system prompt, files and another language", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await page.getByRole("button", { name: "Settings" }).click();
  const temperature = page.getByRole("spinbutton", { name: "Temperature" });
  assert.equal(await temperature.getAttribute("placeholder"), "1");
  await temperature.fill("0.5");
  await page.getByRole("textbox", { name: "System prompt" }).fill("Be brief.");
  await page.getByRole("combobox", { name: "Language" }).selectOption("de");
  await page.getByRole("heading", { name: "Einstellungen" }).waitFor();
  await page.keyboard.press("Escape");
  const asked = page.waitForRequest(/chat\/completions/);
  await page.locator(".composer input[type=file]").setInputFiles([
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("three ``` ticks") },
    { name: "picture.png", mimeType: "image/png", buffer: Buffer.from([0, 255, 1]) },
  ]);
  await page.getByText("Kein Text von höchstens 1 MiB: picture.png").waitFor();
  await send(page, "Hallo");
  const { messages, temperature: sent, top_p } = (await asked).postDataJSON();
  assert.equal(sent, 0.5);
  assert.equal(top_p, undefined);
  assert.deepEqual(messages, [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Hallo\n\nnotes.txt:\n````\nthree ``` ticks\n````" },
  ]);
  await ended(page);
  assert.equal(await page.locator("html").getAttribute("lang"), "de");
  assert.deepEqual(faults, []);
  await context.close();
});

test("the API key is asked for, and kept in the session only", async () => {
  const server = await serveScripted({ api_key: ["right"] });
  try {
    const { page, faults, context } = await openPage(browser, server.url, DESKTOP);
    const key = page.getByLabel("Key", { exact: true });
    await key.fill("wrong");
    await key.press("Enter");
    await page.getByText("The server didn't accept that key.").waitFor();
    await accessible(page);
    await page.getByLabel("Key", { exact: true }).fill("right");
    await page.getByLabel("Key", { exact: true }).press("Enter");
    await send(page, "hello there");
    await page.getByText("You said: hello there").waitFor();
    const kept = await page.evaluate(() => [JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage })]);
    assert.ok(!kept[0].includes("right"));
    assert.ok(kept[1].includes("right"));
    assert.deepEqual(faults, []);
    await context.close();
  } finally {
    await server.stop();
  }
});

test("a key may come later, and have any characters", async () => {
  const server = await serveScripted({ api_key: ["schlüssel €"] });
  try {
    const { page, faults, context } = await openPage(browser, server.url, DESKTOP);
    const key = page.getByLabel("Key", { exact: true });
    await key.waitFor();
    await page.keyboard.press("Escape");
    await send(page, "hello there");
    await key.fill("wrong \u200b");
    await key.press("Enter");
    await page.getByText("The server didn't accept that key.").waitFor();
    await page.getByLabel("Key", { exact: true }).fill("schlüssel €");
    await page.getByLabel("Key", { exact: true }).press("Enter");
    await page.getByText("You said: hello there").waitFor();
    await page.getByRole("combobox", { name: "Model" }).waitFor();
    assert.deepEqual(faults, []);
    await context.close();
  } finally {
    await server.stop();
  }
});

test("200 conversations: found by their words, taken out and in, removed", async () => {
  const { page, faults, context } = await openPage(browser, scripted.url, DESKTOP);
  await send(page, "the first one");
  await ended(page);
  const waiting = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  const exported = JSON.parse(readFileSync(await (await waiting).path(), "utf8"));
  const [conversation] = exported.conversations;
  const more = Array.from({ length: 200 }, (_, n) => ({
    conversation: { ...conversation, id: `c${n}`, title: `Conversation ${n} <b>`, leaf: `c${n}-0` },
    message: { id: `c${n}-0`, conversation: `c${n}`, parent: null, role: "user", content: `word${n} needle`, created: 1, state: "done" },
  }));
  const content = {
    ...exported,
    conversations: more.map((one) => one.conversation),
    messages: more.map((one) => one.message),
  };
  await page.locator(".sidebar input[type=file]").setInputFiles([
    { name: "all.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(content)) },
  ]);
  await page.getByText("Conversations added: 200").waitFor();
  assert.equal(await page.locator(".conversations li").count(), 201);
  await page.getByRole("searchbox").fill("needle word123");
  await page.waitForFunction(() => document.querySelectorAll(".conversations li").length === 1);
  await page.getByRole("link", { name: "Conversation 123 <b>" }).click();
  await page.getByText("word123 needle").waitFor();
  await page.locator(".conversations li").hover();
  await page.getByRole("button", { name: "Remove Conversation 123" }).click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByText("No conversation has these words.").waitFor();
  await page.getByRole("searchbox").fill("");
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll(".conversations li").length === 200);
  await accessible(page);
  assert.deepEqual(faults, []);
  await context.close();
});
