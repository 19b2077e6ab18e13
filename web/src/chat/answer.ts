// The making of one answer, to its end: over lost connections, servers that start again and reloads of the page.
import { signal } from "@preact/signals";
import { ApiError, ConnectionLost } from "../api";
import { complete, type Part } from "../completion";
import { samplingFields } from "../sampling";
import { fullText, type Figures, type Message, type Settings, type ToolCall } from "./model";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;

/** What is heard of an answer while it is made. */
export interface Listener {
  /** There is more of it; called for each part. */
  grew(message: Message): void;
  /** It is over, with whatever state. */
  ended(message: Message): void;
}

/** Answers that are being made, by their message's id: why one waits, or "" where tokens come. */
export const answering = signal<ReadonlyMap<string, string>>(new Map());

const controllers = new Map<string, AbortController>();

export function stop(id: string): void {
  controllers.get(id)?.abort();
}

function say(id: string, waiting: string | null): void {
  if (answering.value.get(id) === waiting) return;
  const next = new Map(answering.value);
  if (waiting === null) next.delete(id);
  else next.set(id, waiting);
  answering.value = next;
}

/** Makes `message`, an open answer to `before`, or goes on with it. One tab at a time does so. */
export async function answer(message: Message, before: Message[], settings: Settings, heard: Listener): Promise<void> {
  if (controllers.has(message.id)) return;
  const run = (): Promise<void> => make(message, before, settings, heard);
  if (!navigator.locks) return run(); // an origin that isn't secure
  await navigator.locks.request(`minisgl-${message.id}`, { ifAvailable: true }, async (lock) => {
    if (lock) await run();
  });
}

async function make(message: Message, before: Message[], settings: Settings, heard: Listener): Promise<void> {
  const controller = new AbortController();
  controllers.set(message.id, controller);
  say(message.id, "");
  try {
    for (let wait = FIRST_WAIT_MS; message.state === "open"; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      const tokens = message.figures?.tokens ?? 0;
      try {
        await attempt(message, before, settings, controller.signal, heard);
        message.state = "done";
      } catch (error) {
        if ((message.figures?.tokens ?? 0) > tokens) wait = FIRST_WAIT_MS;
        const reason = reasonToWait(error, controller.signal);
        if (reason === null) fail(message, error, controller.signal);
        else {
          say(message.id, reason);
          await pause(wait, controller.signal);
        }
      }
    }
  } finally {
    controllers.delete(message.id);
    say(message.id, null);
    heard.ended(message);
  }
}

/** Why the answer can go on later; null: it can't. */
function reasonToWait(error: unknown, aborted: AbortSignal): string | null {
  if (aborted.aborted) return null;
  if (error instanceof ConnectionLost) return "lost";
  return error instanceof ApiError && error.passes ? error.message : null;
}

function fail(message: Message, error: unknown, aborted: AbortSignal): void {
  message.state = aborted.aborted ? "stopped" : "failed";
  if (!aborted.aborted) message.error = error instanceof Error ? error.message : String(error);
}

function pause(milliseconds: number, aborted: AbortSignal): Promise<void> {
  return new Promise<void>((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      aborted.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    aborted.addEventListener("abort", end);
    if (aborted.aborted) end();
  });
}

async function attempt(
  message: Message,
  before: Message[],
  settings: Settings,
  aborted: AbortSignal,
  heard: Listener,
): Promise<void> {
  // A thought or a call that was cut off can't be gone on with: the answer begins anew.
  if (!message.content || message.calls?.length) clear(message);
  const figures = (message.figures ??= noFigures());
  const earlier = { ...figures };
  const began = performance.now();
  let first: number | null = null;
  for await (const part of complete(requestOf(message, before, settings), aborted)) {
    const now = performance.now();
    if (part.content || part.reasoning || part.calls.length) {
      first ??= now;
      figures.firstToken ??= now - began;
      say(message.id, "");
    }
    if (first !== null) figures.making = earlier.making + now - first;
    take(message, part);
    if (part.usage) {
      figures.tokens = earlier.tokens + part.usage.completion_tokens;
      figures.promptTokens = part.usage.prompt_tokens;
      figures.cachedTokens = part.usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    heard.grew(message);
  }
}

function clear(message: Message): void {
  message.content = "";
  delete message.reasoning;
  delete message.calls;
  delete message.figures;
}

function noFigures(): Figures {
  return { firstToken: null, making: 0, promptTokens: 0, cachedTokens: 0, tokens: 0 };
}

function take(message: Message, part: Part): void {
  message.content += part.content;
  if (part.reasoning) message.reasoning = (message.reasoning ?? "") + part.reasoning;
  for (const { index, id, function: called } of part.calls) {
    const calls: ToolCall[] = (message.calls ??= []);
    const one = (calls[index] ??= { id: "", name: "", arguments: "" });
    one.id ||= id ?? "";
    one.name += called?.name ?? "";
    one.arguments += called?.arguments ?? "";
  }
  if (part.finish) message.finish = part.finish;
}

/** The request that makes the answer, or the rest of it where a part has come already. */
export function requestOf(message: Message, before: Message[], settings: Settings): Record<string, unknown> {
  const fields = samplingFields(settings);
  const made = message.figures?.tokens ?? 0;
  if (typeof fields["max_tokens"] === "number") fields["max_tokens"] = Math.max(1, fields["max_tokens"] - made);
  if (settings.tools.trim()) fields["tools"] = JSON.parse(settings.tools);
  const messages: unknown[] = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  messages.push(...before.map(asSent));
  const rest = message.content !== "";
  if (rest) messages.push(asSent(message));
  return {
    ...(message.model ? { model: message.model } : {}),
    messages,
    ...fields,
    ...(rest ? { continue_final_message: true, add_generation_prompt: false } : {}),
  };
}

function asSent(message: Message): unknown {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
  if (message.role === "user") return { role: "user", content: fullText(message) };
  const calls = message.calls?.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  return {
    role: "assistant",
    content: message.content,
    ...(message.reasoning ? { reasoning_content: message.reasoning } : {}),
    ...(calls?.length ? { tool_calls: calls } : {}),
  };
}
