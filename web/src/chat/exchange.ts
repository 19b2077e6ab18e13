// Conversations as a file: out of this browser, and into another one.
import { newId } from "../ids";
import { NO_SETTINGS, type Conversation, type Message } from "./model";
import { reload } from "./state";
import * as store from "./store";

interface Exported {
  format: "minisgl-conversations";
  version: 1;
  conversations: Conversation[];
  messages: Message[];
}

export async function exportAll(): Promise<void> {
  const content: Exported = {
    format: "minisgl-conversations",
    version: 1,
    conversations: await store.allConversations(),
    messages: await store.allMessages(),
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: "application/json" }));
  link.download = `minisgl-conversations-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Adds the conversations of a file, beside those that are there. Returns how many; null: it isn't such a file. */
export async function importFile(file: File): Promise<number | null> {
  let content: Exported;
  try {
    content = JSON.parse(await file.text()) as Exported;
  } catch {
    return null;
  }
  if (content?.format !== "minisgl-conversations" || content.version !== 1) return null;
  if (!Array.isArray(content.conversations) || !Array.isArray(content.messages)) return null;
  const ids = new Map<string, string>();
  const renewed = (id: unknown): string => {
    const known = String(id);
    if (!ids.has(known)) ids.set(known, newId());
    return ids.get(known) as string;
  };
  const conversations = content.conversations.map((one) => readConversation(one, renewed));
  const known = new Set(conversations.map((one) => one.id));
  const messages = content.messages.map((one) => readMessage(one, renewed)).filter((one) => known.has(one.conversation));
  await store.save(conversations, messages);
  await reload();
  return conversations.length;
}

/** What the file has of a conversation, under an identifier of its own. */
function readConversation(one: Conversation, renewed: (id: unknown) => string): Conversation {
  return {
    id: renewed(one.id),
    title: String(one.title ?? "").slice(0, 200),
    created: Number(one.created) || Date.now(),
    updated: Number(one.updated) || Date.now(),
    leaf: one.leaf === null ? null : renewed(one.leaf),
    settings: { ...NO_SETTINGS, ...one.settings },
  };
}

function readMessage(one: Message, renewed: (id: unknown) => string): Message {
  const roles = ["user", "assistant", "tool"] as const;
  return {
    ...one,
    id: renewed(one.id),
    conversation: renewed(one.conversation),
    parent: one.parent === null ? null : renewed(one.parent),
    role: roles.find((role) => role === one.role) ?? "user",
    content: String(one.content ?? ""),
    created: Number(one.created) || Date.now(),
    // Nobody goes on with an answer that another browser began.
    state: one.state === "failed" || one.state === "done" ? one.state : "stopped",
  };
}
