// What a conversation is: a tree of messages, of which one path is shown.
import { newId } from "../ids";

export interface TextFile {
  name: string;
  text: string;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** What an answer took. Times are in milliseconds. */
export interface Figures {
  firstToken: number | null;
  /** From the first token to the last, without what lay between two connections. */
  making: number;
  promptTokens: number;
  cachedTokens: number;
  tokens: number;
}

/** "open": the answer isn't complete, and goes on where it stopped. */
export type MessageState = "done" | "open" | "stopped" | "failed";

export interface Message {
  id: string;
  conversation: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  content: string;
  created: number;
  state: MessageState;
  reasoning?: string;
  calls?: ToolCall[];
  /** Of a tool's result: the call that it answers. */
  callId?: string;
  files?: TextFile[];
  model?: string;
  figures?: Figures;
  finish?: string;
  error?: string;
}

/** What a conversation's requests say beside its messages. Empty texts: the server's defaults. */
export interface Settings {
  model: string;
  system: string;
  sampling: Record<string, string>;
  maxTokens: string;
  seed: string;
  stop: string;
  tools: string;
}

export const NO_SETTINGS: Settings = {
  model: "",
  system: "",
  sampling: {},
  maxTokens: "",
  seed: "",
  stop: "",
  tools: "",
};

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  /** The last message of the path that is shown. */
  leaf: string | null;
  settings: Settings;
}

export type Messages = ReadonlyMap<string, Message>;

export function newConversation(settings: Settings): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, leaf: null, settings };
}

/** The messages from the first to `leaf`. */
export function path(messages: Messages, leaf: string | null): Message[] {
  const found: Message[] = [];
  const seen = new Set<string>();
  for (let id = leaf; id !== null && !seen.has(id); ) {
    const message = messages.get(id);
    if (!message) break;
    seen.add(id);
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** Those in the place of a message, itself among them, the oldest first. */
export function siblings(messages: Messages, message: Message): Message[] {
  return [...messages.values()]
    .filter((one) => one.parent === message.parent)
    .sort((a, b) => a.created - b.created);
}

/** Where the path goes that leads through a message: to the newest below it. */
export function newestLeaf(messages: Messages, id: string): string {
  const seen = new Set<string>();
  for (let leaf = id; ; ) {
    seen.add(leaf);
    const children = [...messages.values()].filter((one) => one.parent === leaf && !seen.has(one.id));
    const newest = children.reduce<Message | null>((a, b) => (a && a.created >= b.created ? a : b), null);
    if (!newest) return leaf;
    leaf = newest.id;
  }
}

/** The beginning of the first words, as a title. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 57)}...` : line;
}

/** A message's text as the model reads it, its files behind it. */
export function fullText(message: Message): string {
  const files = (message.files ?? []).map(({ name, text }) => `${name}:\n${fenced(text)}`);
  return [message.content, ...files].filter(Boolean).join("\n\n");
}

/** A block of code with a fence longer than any in it. */
function fenced(text: string): string {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((ticks) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}
