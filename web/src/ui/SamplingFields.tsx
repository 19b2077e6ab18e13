// What a person may set of sampling. What is left empty is the server's default, which the field shows.
import { serverSettings } from "../api";
import type { Settings } from "../chat/model";
import { number, t, type TextKey } from "../i18n";

type Sampling = Pick<Settings, "sampling" | "maxTokens" | "seed" | "stop">;

const TEXTS: Record<string, TextKey> = {
  temperature: "temperature",
  top_p: "topP",
  top_k: "topK",
  min_p: "minP",
  repetition_penalty: "repetitionPenalty",
  presence_penalty: "presencePenalty",
  frequency_penalty: "frequencyPenalty",
};

interface Fields<T extends Sampling> {
  value: T;
  onChange: (changed: T) => void;
}

export function SamplingFields<T extends Sampling>({ value, onChange }: Fields<T>) {
  const ranges = serverSettings.value?.sampling ?? {};
  return (
    <div class="grid">
      {Object.entries(ranges).map(([name, range]) => (
        <label class="field">
          {t(TEXTS[name] ?? "temperature")}
          <input
            type="number"
            step={name === "top_k" ? 1 : "any"}
            min={range.least}
            max={range.most ?? undefined}
            placeholder={String(Number(range.default.toPrecision(6)))}
            value={value.sampling[name] ?? ""}
            onInput={(event) =>
              onChange({ ...value, sampling: { ...value.sampling, [name]: event.currentTarget.value } })
            }
          />
        </label>
      ))}
      <label class="field">
        {t("maxTokens")}
        <input
          type="number"
          min={1}
          max={serverSettings.value?.max_model_len ?? undefined}
          placeholder={t("asFits", { most: number(serverSettings.value?.max_model_len ?? 0) })}
          value={value.maxTokens}
          onInput={(event) => onChange({ ...value, maxTokens: event.currentTarget.value })}
        />
      </label>
      <label class="field">
        {t("seed")}
        <input
          type="number"
          min={0}
          placeholder={t("anySeed")}
          value={value.seed}
          onInput={(event) => onChange({ ...value, seed: event.currentTarget.value })}
        />
      </label>
      <label class="field wide">
        {t("stopTexts")}
        <textarea
          rows={2}
          value={value.stop}
          onInput={(event) => onChange({ ...value, stop: event.currentTarget.value })}
        />
      </label>
    </div>
  );
}
