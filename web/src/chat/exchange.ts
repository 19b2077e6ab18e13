// Conversations as a file: out of this browser, and into another one.
import { newId } from "../ids";
import { fieldsOf, readConversation, readMessage, type Fields } from "./imported";
import type { Conversation, Message } from "./model";
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
  let content: Fields;
  try {
    content = fieldsOf(JSON.parse(await file.text()));
  } catch {
    return null;
  }
  const { format, version, conversations: given, messages: said } = content;
  if (format !== "minisgl-conversations" || version !== 1 || !Array.isArray(given) || !Array.isArray(said)) return null;
  const ids = new Map<string, string>();
  const renewed = (id: unknown): string => {
    const known = String(id);
    if (!ids.has(known)) ids.set(known, newId());
    return ids.get(known) as string;
  };
  const conversations = given.map((one) => readConversation(fieldsOf(one), renewed));
  const known = new Set(conversations.map((one) => one.id));
  const messages = said.map((one) => readMessage(fieldsOf(one), renewed)).filter((one) => known.has(one.conversation));
  await store.save(conversations, messages);
  await reload();
  return conversations.length;
}
