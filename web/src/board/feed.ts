// The board's numbers, as the server sends them.
import { batch, signal } from "@preact/signals";
import { ApiError, call } from "../api";
import { readEvents } from "../events";

const KEPT = 1800; // samples: an hour
const AGAIN_MS = 2000;

/** A row of numbers for each sample, by the names of the fields. */
export type Sample = Record<string, number | null>;

export interface Rank {
  device: string;
  cores: string;
  weight_bytes: number;
  kv_cache_bytes: number;
  workspace_bytes: number;
  graph_bytes: number;
  free_bytes: number;
}

export interface Replica {
  number: number;
  state: string;
  phase: string;
  place: string;
  model: string;
  revision: string;
  live: number;
  waiting_tokens: number;
  restarts: number;
  kv_usage: number;
  ranks: Rank[];
}

export interface Refusal {
  time: number;
  route: string;
  status: number;
  code: string;
  message: string;
}

export interface ServerState {
  model: string;
  state: string;
  phase: string;
  failure: string;
  restarts: number;
  live: number;
  replaying: number;
  waiting_tokens: number;
  pages_total: number;
  pages_free: number;
  page_size: number;
  tiers: Record<"device" | "host", { pages: number; looked_for: number; found: number }>;
  ranks: Rank[];
  replicas: Replica[];
  refusals: Refusal[];
  operators: boolean;
}

export const samples = signal<Sample[]>([]);
export const server = signal<ServerState | null>(null);
/** "refused": the server wants a key, and got none. */
export const connection = signal<"opening" | "live" | "lost" | "refused">("opening");

/** Hears the server for as long as the page is open. */
export async function follow(): Promise<void> {
  for (;;) {
    try {
      await hear();
      connection.value = "lost";
    } catch (error) {
      if (error instanceof ApiError && !error.passes) {
        connection.value = "refused";
        return;
      }
      connection.value = "lost";
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function hear(): Promise<void> {
  const { body } = await call("ui/board");
  let fields: string[] = [];
  const named = (row: (number | null)[]): Sample =>
    Object.fromEntries(fields.map((name, index) => [name, row[index] ?? null]));
  if (!body) return;
  for await (const { event, data } of readEvents(body)) {
    const content: unknown = JSON.parse(data);
    batch(() => {
      connection.value = "live";
      if (event === "history") {
        const history = content as { fields: string[]; samples: (number | null)[][] };
        fields = history.fields;
        samples.value = history.samples.map(named);
      } else if (event === "sample") {
        samples.value = [...samples.value, named(content as (number | null)[])].slice(-KEPT);
      } else if (event === "state") {
        server.value = content as ServerState;
      }
    });
  }
}
