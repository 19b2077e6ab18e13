// What the chat shows, and all that a person can do to it.
import { batch, computed, signal } from "@preact/signals";
import { newId } from "../ids";
import { serverSettings } from "../api";
import { answer, stop } from "./answer";
import {
  newConversation,
  newestLeaf,
  NO_SETTINGS,
  path,
  siblings,
  titleOf,
  type Conversation,
  type Message,
  type Settings,
  type TextFile,
} from "./model";
import * as store from "./store";

const SAVE_MS = 500; // between two saves of an answer that grows
const SETTINGS = "minisgl-settings"; // those of the next new conversation

export const conversations = signal<Conversation[]>([]);
export const current = signal<Conversation | null>(null);
/** All messages of the current conversation. A message that is being made changes in place: `grown` says when. */
export const messages = signal<ReadonlyMap<string, Message>>(new Map());
export const grown = signal(0);
/** What a screen reader is told. */
export const announcement = signal<"" | "begun" | "complete" | "stopped" | "failed">("");
/** Settings of a conversation that hasn't begun. */
const draftSettings = signal<Settings>(storedSettings());

export const shown = computed(() => path(messages.value, current.value?.leaf ?? null));
export const settings = computed(() => current.value?.settings ?? draftSettings.value);
/** The shown answer that is being made. */
export const open = computed(() => shown.value.find((one) => one.state === "open") ?? null);

function storedSettings(): Settings {
  try {
    return { ...NO_SETTINGS, ...(JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>) };
  } catch {
    return NO_SETTINGS;
  }
}

/** The model that the next answer is asked of. */
export const model = computed(() => {
  const models = serverSettings.value?.models ?? [];
  const chosen = settings.value.model;
  return models.includes(chosen) ? chosen : (models[0] ?? chosen);
});

export async function start(): Promise<void> {
  conversations.value = await store.allConversations();
  await goTo(location.hash.slice(1));
  addEventListener("hashchange", () => void goTo(location.hash.slice(1)));
}

async function goTo(id: string): Promise<void> {
  if (id === (current.value?.id ?? "")) return;
  const found = conversations.value.find((one) => one.id === id) ?? null;
  const loaded = found ? await store.messagesOf(found.id) : [];
  batch(() => {
    current.value = found;
    messages.value = new Map(loaded.map((one) => [one.id, inMaking.get(one.id) ?? one]));
  });
  if (open.value) void make(open.value);
}

export function show(id: string | null): void {
  location.hash = id ?? "";
}

/** Messages whose answers are being made, in whichever conversation. */
const inMaking = new Map<string, Message>();

export async function send(text: string, files: TextFile[]): Promise<void> {
  const conversation = begin(titleOf(text || (files[0]?.name ?? "")));
  const message = newMessage(conversation, conversation.leaf, "user", text);
  if (files.length) message.files = files;
  await ask(conversation, message);
}

/** The current conversation, or a new one with this title. */
function begin(title: string): Conversation {
  if (current.value) return current.value;
  const created = { ...newConversation(draftSettings.value), title };
  batch(() => {
    current.value = created;
    messages.value = new Map();
    conversations.value = [created, ...conversations.value];
  });
  show(created.id);
  return created;
}

function newMessage(of: Conversation, parent: string | null, role: Message["role"], content: string): Message {
  return { id: newId(), conversation: of.id, parent, role, content, created: Date.now(), state: "done" };
}

/** Adds a message and has it answered. */
async function ask(conversation: Conversation, message: Message): Promise<void> {
  add(message);
  await answerTo(conversation, message.id, [message]);
}

function add(message: Message): void {
  messages.value = new Map(messages.value).set(message.id, message);
}

async function answerTo(conversation: Conversation, parent: string | null, unsaved: Message[]): Promise<void> {
  const made = newMessage(conversation, parent, "assistant", "");
  made.state = "open";
  made.model = model.value;
  batch(() => {
    add(made);
    update({ ...conversation, leaf: made.id, updated: Date.now() });
  });
  if (current.value) await store.save([current.value], [...unsaved, made]);
  await make(made);
}

/** Replaces a conversation by itself, changed. */
function update(changed: Conversation): void {
  const others = conversations.value.filter((one) => one.id !== changed.id);
  batch(() => {
    if (current.value?.id === changed.id) current.value = changed;
    conversations.value = [changed, ...others].sort((a, b) => b.updated - a.updated);
  });
}

let frame = 0;

/** Has the page show what has grown, once per frame. */
function showGrowth(): void {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    grown.value++;
  });
}

async function make(message: Message): Promise<void> {
  if (inMaking.has(message.id)) return;
  inMaking.set(message.id, message);
  let saved = performance.now();
  const before = path(messages.value, message.parent);
  announcement.value = "begun";
  const save = (): void => {
    // Not where the conversation was removed meanwhile: nothing of it is to stay.
    if (conversations.value.some((one) => one.id === message.conversation)) void store.save([], [message]);
  };
  addEventListener("pagehide", save);
  await answer(message, before, settings.value, {
    grew: () => {
      showGrowth();
      if (performance.now() - saved < SAVE_MS) return;
      saved = performance.now();
      save();
    },
    ended: () => {
      announcement.value = message.state === "done" ? "complete" : message.state === "stopped" ? "stopped" : "failed";
      save();
    },
  });
  removeEventListener("pagehide", save);
  inMaking.delete(message.id);
  if (messages.value.has(message.id)) add({ ...message });
}

export function stopAnswer(): void {
  if (open.value) stop(open.value.id);
}

/** Another answer beside this one. */
export async function regenerate(message: Message): Promise<void> {
  if (current.value) await answerTo(current.value, message.parent, []);
}

/** Goes on with an answer that was stopped, or failed. */
export async function resume(message: Message): Promise<void> {
  const again: Message = { ...message, state: "open" };
  delete again.error;
  add(again);
  await make(again);
}

/** Another message in the place of this one, which stays beside it. */
export async function edit(message: Message, text: string): Promise<void> {
  if (!current.value) return;
  const changed = newMessage(current.value, message.parent, message.role, text);
  if (message.files) changed.files = message.files;
  await ask(current.value, changed);
}

/** Answers a call of a tool. The model goes on once all calls of its answer have a result. */
export async function answerCall(message: Message, callId: string, text: string): Promise<void> {
  const conversation = current.value;
  if (!conversation) return;
  const result = newMessage(conversation, conversation.leaf, "tool", text);
  result.callId = callId;
  const given = new Set([callId, ...shown.value.filter((one) => one.role === "tool").map((one) => one.callId)]);
  if (message.calls?.every(({ id }) => given.has(id))) return ask(conversation, result);
  batch(() => {
    add(result);
    update({ ...conversation, leaf: result.id });
  });
  if (current.value) await store.save([current.value], [result]);
}

/** Shows the message so many places after this one among its siblings. */
export async function showSibling(message: Message, step: number): Promise<void> {
  if (!current.value) return;
  const all = siblings(messages.value, message);
  const other = all[all.findIndex((one) => one.id === message.id) + step];
  if (!other) return;
  update({ ...current.value, leaf: newestLeaf(messages.value, other.id) });
  await store.save([current.value], []);
  if (open.value) void make(open.value);
}

export async function changeSettings(changed: Settings): Promise<void> {
  draftSettings.value = changed;
  localStorage.setItem(SETTINGS, JSON.stringify({ ...changed, system: "", tools: "" }));
  if (!current.value) return;
  update({ ...current.value, settings: changed });
  await store.save([current.value], []);
}

export async function rename(conversation: Conversation, title: string): Promise<void> {
  const changed = { ...conversation, title };
  update(changed);
  await store.save([changed], []);
}

export async function remove(conversation: Conversation): Promise<void> {
  for (const message of inMaking.values()) if (message.conversation === conversation.id) stop(message.id);
  conversations.value = conversations.value.filter((one) => one.id !== conversation.id);
  if (current.value?.id === conversation.id) show(null);
  await store.remove(conversation.id);
}

/** Reads the list again, after an import. */
export async function reload(): Promise<void> {
  conversations.value = await store.allConversations();
}
