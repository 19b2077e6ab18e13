// Requests to this server, with the key that the person gave, and what can go wrong with them.
import { signal } from "@preact/signals";

/** A refusal of the server's, in its own words. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfter = 0,
  ) {
    super(message);
  }

  /** Whether the same request may succeed later. */
  get passes(): boolean {
    return this.status === 429 || this.status >= 500;
  }
}

/** The connection broke, or there is nobody to connect to. */
export class ConnectionLost extends Error {}

type KeyKind = "api" | "operator";
const NAMES: Record<KeyKind, string> = { api: "minisgl-api-key", operator: "minisgl-operator-key" };

/** Which key the person is asked for, and what waits for it. */
export const keyWanted = signal<{ kind: KeyKind; wrong: boolean; answer: (key: string | null) => void } | null>(null);

export const hasKey = (kind: KeyKind): boolean => sessionStorage.getItem(NAMES[kind]) !== null;

export function forgetKeys(): void {
  for (const name of Object.values(NAMES)) sessionStorage.removeItem(name);
}

const asked = new Map<KeyKind, Promise<boolean>>();

/** Asks for a key, once for all that need it. False where the person gives none. */
function askForKey(kind: KeyKind, wrong: boolean): Promise<boolean> {
  let question = asked.get(kind);
  if (!question) {
    question = new Promise<boolean>((resolve) => {
      const answer = (key: string | null): void => {
        if (key) sessionStorage.setItem(NAMES[kind], key);
        keyWanted.value = null;
        asked.delete(kind);
        resolve(Boolean(key));
        // It may be the first, after a dialog that was closed without one.
        if (key && kind === "api" && !serverSettings.value) void loadSettings();
      };
      keyWanted.value = { kind, wrong, answer };
    });
    asked.set(kind, question);
  }
  return question;
}

export interface Call {
  method?: "GET" | "POST" | "DELETE";
  body?: unknown;
  signal?: AbortSignal;
  key?: KeyKind;
}

/** The UTF-8 bytes of a text, each as one character: a header may have no others. */
function asBytes(text: string): string {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

/** The answer to a request that succeeded. Paths are relative to the page: "v1/models".
 * Throws ApiError, ConnectionLost, and AbortError where `signal` ends it. */
export async function call(path: string, { method, body, signal, key = "api" }: Call = {}): Promise<Response> {
  for (;;) {
    const sent = sessionStorage.getItem(NAMES[key]);
    const headers: Record<string, string> = {};
    if (sent) headers["Authorization"] = `Bearer ${asBytes(sent)}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response: Response;
    try {
      response = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        headers,
        body: body === undefined ? null : JSON.stringify(body),
        signal: signal ?? null,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ConnectionLost();
    }
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    // Another request may have brought a newer key meanwhile.
    if (response.status !== 401) throw refusal;
    if (sent !== sessionStorage.getItem(NAMES[key])) continue;
    if (!(await askForKey(key, sent !== null))) throw refusal;
    signal?.throwIfAborted();
  }
}

/** The same, read as JSON. */
export async function callJson<T>(path: string, options: Call = {}): Promise<T> {
  return (await (await call(path, options)).json()) as T;
}

async function refusalOf(response: Response): Promise<ApiError> {
  let message = `${response.status} ${response.statusText}`;
  try {
    const body = (await response.json()) as { error?: { message?: string } };
    message = body.error?.message ?? message;
  } catch {
    // Not the server's own words: a proxy's, for instance.
  }
  return new ApiError(response.status, message, Number(response.headers.get("retry-after") ?? 0));
}

interface Range {
  default: number;
  least: number;
  most: number | null;
}

/** What /ui/settings says. */
export interface ServerSettings {
  version: string;
  models: string[];
  max_model_len: number | null;
  sampling: Record<string, Range>;
  max_logprobs: number;
  operators: boolean;
}

export const serverSettings = signal<ServerSettings | null>(null);

let loading = false;

/** Asks the server what it serves, until it answers. */
export async function loadSettings(): Promise<void> {
  if (loading) return;
  loading = true;
  try {
    serverSettings.value = await answeredSettings();
  } catch {
    // The server wants a key, and got none: the next that it gets begins this anew.
  }
  loading = false;
}

/** Throws ApiError for a refusal that doesn't pass. */
async function answeredSettings(): Promise<ServerSettings> {
  for (let wait = 500; ; wait = Math.min(wait * 1.5, 5000)) {
    try {
      return await callJson<ServerSettings>("ui/settings");
    } catch (error) {
      if (error instanceof ApiError && !error.passes) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
