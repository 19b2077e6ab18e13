// Conversations as a file says them, which may be anything: each value is made what the page takes it for.
import type { Conversation, Figures, Message, Settings } from "./model";

export type Fields = Record<string, unknown>;
export type Renewed = (id: unknown) => string;

export function fieldsOf(value: unknown): Fields {
  return typeof value === "object" && value !== null ? (value as Fields) : {};
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function listOf(value: unknown): Fields[] {
  return Array.isArray(value) ? value.map(fieldsOf) : [];
}

/** What the file has of a conversation, under an identifier of its own. */
export function readConversation(one: Fields, renewed: Renewed): Conversation {
  return {
    id: renewed(one["id"]),
    title: textOf(one["title"]).slice(0, 200),
    created: Number(one["created"]) || Date.now(),
    updated: Number(one["updated"]) || Date.now(),
    leaf: typeof one["leaf"] === "string" ? renewed(one["leaf"]) : null,
    settings: readSettings(fieldsOf(one["settings"])),
  };
}

function readSettings(one: Fields): Settings {
  const sampling = Object.entries(fieldsOf(one["sampling"])).map(([name, value]) => [name, textOf(value)]);
  return {
    model: textOf(one["model"]),
    system: textOf(one["system"]),
    sampling: Object.fromEntries(sampling) as Record<string, string>,
    maxTokens: textOf(one["maxTokens"]),
    seed: textOf(one["seed"]),
    stop: textOf(one["stop"]),
    tools: textOf(one["tools"]),
  };
}

const ROLES = ["user", "assistant", "tool"] as const;
const TEXTS = ["reasoning", "callId", "model", "finish", "error"] as const;

export function readMessage(one: Fields, renewed: Renewed): Message {
  const message: Message = {
    id: renewed(one["id"]),
    conversation: renewed(one["conversation"]),
    parent: typeof one["parent"] === "string" ? renewed(one["parent"]) : null,
    role: ROLES.find((role) => role === one["role"]) ?? "user",
    content: textOf(one["content"]),
    created: Number(one["created"]) || Date.now(),
    // Nobody goes on with an answer that another browser began.
    state: one["state"] === "failed" || one["state"] === "done" ? one["state"] : "stopped",
  };
  for (const name of TEXTS) if (one[name] !== undefined) message[name] = textOf(one[name]);
  const files = listOf(one["files"]).map(({ name, text }) => ({ name: textOf(name), text: textOf(text) }));
  if (files.length) message.files = files;
  const calls = listOf(one["calls"]).map(({ id, name, arguments: text }) => ({
    id: textOf(id),
    name: textOf(name),
    arguments: textOf(text),
  }));
  if (calls.length) message.calls = calls;
  if (one["figures"]) message.figures = readFigures(fieldsOf(one["figures"]));
  return message;
}

function readFigures(one: Fields): Figures {
  const [making = 0, promptTokens = 0, cachedTokens = 0, tokens = 0] = [
    one["making"],
    one["promptTokens"],
    one["cachedTokens"],
    one["tokens"],
  ].map((value) => Number(value) || 0);
  const first = one["firstToken"];
  return { firstToken: typeof first === "number" ? first : null, making, promptTokens, cachedTokens, tokens };
}
