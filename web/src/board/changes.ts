// Changes of replicas that an operator makes, and how they get on.
import { signal } from "@preact/signals";
import { call } from "../api";
import { readEvents } from "../events";

const SHOWN = 8;

/** The latest news, in the server's words. */
export const changes = signal<string[]>([]);

export async function change(method: "POST" | "DELETE", path: string): Promise<void> {
  try {
    const { body } = await call(`admin/replicas${path}`, { method, key: "operator" });
    if (!body) return;
    for await (const { data } of readEvents(body)) {
      const { replica, state, ...more } = JSON.parse(data) as Record<string, unknown>;
      const details = Object.entries(more).map(([name, value]) => `${name} ${String(value)}`);
      say(`${String(replica)}: ${String(state)}${details.length ? ` (${details.join(", ")})` : ""}`);
    }
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
  }
}

function say(text: string): void {
  changes.value = [...changes.value, text].slice(-SHOWN);
}
