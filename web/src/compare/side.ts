// One of the two answers: what it is asked with, and its tokens as they come.
import { signal } from "@preact/signals";
import { NO_SETTINGS, type Settings } from "../chat/model";
import { complete, type TokenLogprob } from "../completion";
import { samplingFields } from "../sampling";

const ALTERNATIVES = 5;

export type SideSettings = Pick<Settings, "model" | "sampling" | "maxTokens" | "seed" | "stop">;

export interface Result {
  tokens: TokenLogprob[];
  reasoning: string;
  state: "" | "open" | "done" | "stopped" | "failed";
  error: string;
  firstToken: number | null;
  /** Milliseconds from the first token to the last. */
  making: number;
}

const NOTHING: Result = { tokens: [], reasoning: "", state: "", error: "", firstToken: null, making: 0 };

export class Side {
  readonly settings = signal<SideSettings>(NO_SETTINGS);
  readonly result = signal<Result>(NOTHING);
  private controller = new AbortController();

  stop(): void {
    this.controller.abort();
  }

  async run(prompt: string, system: string, models: string[]): Promise<void> {
    this.controller = new AbortController();
    const { signal: aborted } = this.controller;
    const made: Result = { ...NOTHING, tokens: [], state: "open" };
    this.result.value = made;
    let frame = 0;
    const show = (): void => {
      frame = 0;
      this.result.value = { ...made };
    };
    const began = performance.now();
    try {
      for await (const part of complete(this.body(prompt, system, models), aborted)) {
        const now = performance.now();
        if (part.logprobs.length || part.reasoning) made.firstToken ??= now - began;
        if (made.firstToken !== null) made.making = now - began - made.firstToken;
        made.tokens.push(...part.logprobs);
        made.reasoning += part.reasoning;
        frame ||= requestAnimationFrame(show);
      }
      made.state = "done";
    } catch (error) {
      made.state = aborted.aborted ? "stopped" : "failed";
      made.error = error instanceof Error ? error.message : String(error);
    }
    cancelAnimationFrame(frame);
    show();
  }

  private body(prompt: string, system: string, models: string[]): Record<string, unknown> {
    const { model } = this.settings.value;
    const named = models.includes(model) ? model : models[0];
    return {
      ...(named ? { model: named } : {}),
      messages: [...(system.trim() ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }],
      ...samplingFields(this.settings.value),
      logprobs: true,
      top_logprobs: ALTERNATIVES,
    };
  }
}
