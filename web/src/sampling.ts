// Sampling parameters as a person writes them, made into a request's fields.
import type { Settings } from "./chat/model";

type Sampling = Pick<Settings, "sampling" | "maxTokens" | "seed" | "stop">;

/** The fields that the person has set; all others are the server's defaults. */
export function samplingFields({ sampling, maxTokens, seed, stop }: Sampling): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const [name, text] of Object.entries(sampling)) if (text !== "") fields[name] = Number(text);
  if (maxTokens !== "") fields["max_tokens"] = Number(maxTokens);
  if (seed !== "") fields["seed"] = Number(seed);
  const stops = stop.split("\n").filter(Boolean);
  if (stops.length) fields["stop"] = stops;
  return fields;
}
