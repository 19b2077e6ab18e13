// How fast an answer came, in words.
import { number, t } from "./i18n";

const SHORTEST_MS = 50; // what comes at once has no rate

/** Of so many tokens, the last of which came so long after the first; null: nothing can be said. */
export function rateOf(tokens: number, milliseconds: number): string | null {
  if (milliseconds <= SHORTEST_MS || tokens < 2) return null;
  return t("tokensPerSecond", { rate: number(((tokens - 1) * 1000) / milliseconds, 1) });
}
