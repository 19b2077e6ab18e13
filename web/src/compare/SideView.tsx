// One side: its settings, and an answer whose tokens say how likely they were.
import { useSignal } from "@preact/signals";
import { serverSettings } from "../api";
import type { TokenLogprob } from "../completion";
import { number, t } from "../i18n";
import { rateOf } from "../rate";
import { SamplingFields } from "../ui/SamplingFields";
import type { Result, Side } from "./side";

export function SideView({ side, name }: { side: Side; name: string }) {
  const settings = side.settings.value;
  const result = side.result.value;
  const models = serverSettings.value?.models ?? [];
  return (
    <section aria-label={t("answerNamed", { name })}>
      <header class="row">
        <h2>{name}</h2>
        <select
          class="models"
          aria-label={`${t("model")} ${name}`}
          value={models.includes(settings.model) ? settings.model : models[0]}
          onChange={(event) => (side.settings.value = { ...settings, model: event.currentTarget.value })}
        >
          {models.map((one) => (
            <option>{one}</option>
          ))}
        </select>
      </header>
      <details>
        <summary>{t("sampling")}</summary>
        <SamplingFields value={settings} onChange={(changed) => (side.settings.value = changed)} />
      </details>
      {result.reasoning && (
        <details class="reasoning">
          <summary>{t("thought")}</summary>
          <p class="plain">{result.reasoning}</p>
        </details>
      )}
      <Tokens result={result} />
      {result.state === "failed" && (
        <p class="fault" role="alert">
          {result.error || t("answerFailed")}
        </p>
      )}
    </section>
  );
}

/** The tokens; the pointer or the arrow keys choose the one that is looked at. */
function Tokens({ result }: { result: Result }) {
  const chosen = useSignal<number | null>(null);
  const { tokens } = result;
  const token = chosen.value === null ? undefined : tokens[chosen.value];
  const step = (by: number): void => {
    chosen.value = Math.max(0, Math.min(tokens.length - 1, (chosen.value ?? -1) + by));
  };
  return (
    <>
      <div
        class="tokens"
        tabIndex={0}
        role="group"
        aria-label={t("tokensChosen")}
        onPointerOver={(event) => {
          const position = event.target instanceof HTMLElement ? event.target.dataset["position"] : undefined;
          if (position !== undefined) chosen.value = Number(position);
        }}
        onKeyDown={(event) => {
          if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
          event.preventDefault();
          step(event.key === "ArrowRight" ? 1 : -1);
        }}
      >
        {tokens.map((one, index) => (
          <span
            key={index}
            data-position={index}
            class={`likely-${level(one.logprob)} ${index === chosen.value ? "chosen" : ""}`}
          >
            {one.token}
          </span>
        ))}
      </div>
      <FiguresOf result={result} />
      <div class="alternatives" role="status">
        {token && <Alternatives token={token} />}
      </div>
    </>
  );
}

function Alternatives({ token }: { token: TokenLogprob }) {
  return (
    <table>
      <caption>{t("tokenLogprob", { token: visible(token.token), logprob: number(token.logprob, 3) })}</caption>
      <thead>
        <tr>
          <th scope="col">{t("token")}</th>
          <th scope="col">{t("logprob")}</th>
          <th scope="col">{t("probability")}</th>
        </tr>
      </thead>
      <tbody>
        {token.top_logprobs.map((one) => (
          <tr class={one.token === token.token ? "here" : ""}>
            <td>
              <code>{visible(one.token)}</code>
            </td>
            <td>{number(one.logprob, 3)}</td>
            <td>{number(100 * Math.exp(one.logprob), 1)} %</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function FiguresOf({ result: { tokens, firstToken, making, state } }: { result: Result }) {
  if (!tokens.length) return null;
  const mean = tokens.reduce((sum, one) => sum + one.logprob, 0) / tokens.length;
  const parts = [t("tokens", { count: number(tokens.length) }), t("perplexity", { value: number(Math.exp(-mean), 2) })];
  const rate = rateOf(tokens.length, making);
  if (rate) parts.unshift(rate);
  if (firstToken !== null) parts.push(t("firstToken", { time: number(firstToken) }));
  if (state === "stopped") parts.push(t("stopped"));
  return <p class="hint">{parts.join(" · ")}</p>;
}

/** From 0, which the model hardly expected, to 4, of which it was sure. */
function level(logprob: number): number {
  return [0.05, 0.2, 0.5, 0.9].filter((bound) => Math.exp(logprob) >= bound).length;
}

/** A token with signs for white space. */
function visible(token: string): string {
  return token.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}
