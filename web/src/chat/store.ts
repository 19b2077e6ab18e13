// Conversations in the browser's IndexedDB.
import type { Conversation, Message } from "./model";

const NAME = "minisgl";
const VERSION = 1;

let opened: Promise<IDBDatabase> | null = null;

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      const created = request.result;
      created.createObjectStore("conversations", { keyPath: "id" });
      created.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      // A newer page in another tab may change the database.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Runs `work` in one transaction over both stores, and waits until it is on the disk. */
async function change(work: (conversations: IDBObjectStore, messages: IDBObjectStore) => void): Promise<void> {
  const transaction = (await database()).transaction(["conversations", "messages"], "readwrite");
  const complete = new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
  work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
  await complete;
}

/** All conversations without their messages, those that were used last first. */
export async function allConversations(): Promise<Conversation[]> {
  const store = (await database()).transaction("conversations").objectStore("conversations");
  const found = await done(store.getAll() as IDBRequest<Conversation[]>);
  return found.sort((a, b) => b.updated - a.updated);
}

export async function messagesOf(conversation: string): Promise<Message[]> {
  const index = (await database()).transaction("messages").objectStore("messages").index("conversation");
  return done(index.getAll(conversation) as IDBRequest<Message[]>);
}

export async function allMessages(): Promise<Message[]> {
  const store = (await database()).transaction("messages").objectStore("messages");
  return done(store.getAll() as IDBRequest<Message[]>);
}

export async function save(conversations: Conversation[], messages: Message[]): Promise<void> {
  await change((conversationStore, messageStore) => {
    for (const one of conversations) conversationStore.put(one);
    for (const one of messages) messageStore.put(one);
  });
}

export async function remove(conversation: string): Promise<void> {
  await change((conversations, messages) => {
    conversations.delete(conversation);
    const cursor = messages.index("conversation").openKeyCursor(conversation);
    cursor.onsuccess = () => {
      if (!cursor.result) return;
      messages.delete(cursor.result.primaryKey);
      cursor.result.continue();
    };
  });
}

/** The conversations with a message that has all these words, whatever their case. */
export async function search(words: string[]): Promise<Set<string>> {
  const store = (await database()).transaction("messages").objectStore("messages");
  const cursor = store.openCursor();
  const found = new Set<string>();
  await new Promise<void>((resolve, reject) => {
    cursor.onerror = () => reject(cursor.error);
    cursor.onsuccess = () => {
      if (!cursor.result) return resolve();
      const message = cursor.result.value as Message;
      const text = message.content.toLowerCase();
      if (words.every((word) => text.includes(word))) found.add(message.conversation);
      cursor.result.continue();
    };
  });
  return found;
}
