// The board as a whole.
import { useSignal } from "@preact/signals";
import { language, number, t } from "../i18n";
import { Dialog } from "../ui/Dialog";
import { IconButton } from "../ui/Icon";
import { KeyDialog } from "../ui/KeyDialog";
import { Links } from "../ui/Links";
import { Preferences } from "../ui/Preferences";
import { Chart } from "./Chart";
import { Engines } from "./Engines";
import { connection, samples, server, type Refusal, type Sample, type ServerState } from "./feed";

/** Shown until the server says more: nothing moves when it does. */
const NO_TIER = { pages: 0, looked_for: 0, found: 0 };
const NOTHING = { restarts: 0, replaying: 0, pages_total: 0, pages_free: 0, page_size: 0, tiers: { device: NO_TIER, host: NO_TIER } };
type Shown = Pick<ServerState, keyof typeof NOTHING>;

const SPANS = [5, 15, 60]; // minutes

export function Board() {
  const span = useSignal(5);
  const preferences = useSignal(false);
  const state = server.value;
  const since = (samples.value.at(-1)?.["time"] ?? 0) - span.value * 60;
  const shown = samples.value.filter((one) => (one["time"] ?? 0) >= since);
  return (
    <div class="board">
      <header class="bar">
        <h1>{state?.model ?? t("dashboard")}</h1>
        <Links here="dashboard" />
        <IconButton icon="settings" label={t("settings")} onClick={() => (preferences.value = true)} />
      </header>
      <main>
        <div class="row wrap">
          <State />
          <label class="row span">
            {t("shownTime")}
            <select value={span.value} onChange={(event) => (span.value = Number(event.currentTarget.value))}>
              {SPANS.map((minutes) => (
                <option value={minutes}>{t("minutes", { count: minutes })}</option>
              ))}
            </select>
          </label>
        </div>
        <Numbers state={state ?? NOTHING} latest={samples.value.at(-1)} />
        <Charts shown={shown} />
        {state && <Engines state={state} />}
        {state && <Refusals refusals={state.refusals} />}
      </main>
      {preferences.value && (
        <Dialog title={t("settings")} onClose={() => (preferences.value = false)}>
          <Preferences />
        </Dialog>
      )}
      <KeyDialog />
    </div>
  );
}

function State() {
  const state = server.value;
  const texts = { opening: t("connecting"), lost: t("boardLost"), refused: t("boardRefused"), live: "" };
  const lost = texts[connection.value];
  return (
    <p class="grow" role="status">
      <span class={`dot ${lost ? "unknown" : (state?.state ?? "")}`} />
      {lost || [state?.state, state?.phase, state?.failure].filter(Boolean).join(": ")}
    </p>
  );
}

function Numbers({ state, latest }: { state: Shown; latest: Sample | undefined }) {
  const share = (one: { looked_for: number; found: number }): string =>
    one.looked_for ? percent(one.found / one.looked_for) : "–";
  const pages = state.pages_total - state.pages_free;
  const all: [string, string, string][] = [
    [t("running"), number(latest?.["running"] ?? 0), t("waitingCount", { count: number(latest?.["waiting"] ?? 0) })],
    [t("outRate"), number(latest?.["generation_rate"] ?? 0), t("inRate", { rate: number(latest?.["prompt_rate"] ?? 0) })],
    [t("kvPages"), number(pages), t("ofPages", { count: number(state.pages_total), size: state.page_size })],
    [t("deviceHits"), share(state.tiers.device), t("pagesKept", { count: number(state.tiers.device.pages) })],
    [t("hostHits"), share(state.tiers.host), t("pagesKept", { count: number(state.tiers.host.pages) })],
    [t("restarts"), number(state.restarts), t("replaying", { count: number(state.replaying) })],
  ];
  return (
    <dl class="numbers">
      {all.map(([name, value, more]) => (
        <div>
          <dt>{name}</dt>
          <dd>
            <b>{value}</b>
            <span>{more}</span>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function Charts({ shown }: { shown: Sample[] }) {
  const count = (value: number): string => number(value, value > 0 && value < 10 ? 1 : 0);
  const percentiles = (name: string) =>
    (["p50", "p90", "p99"] as const).map((which) => ({ field: `${name}_${which}`, text: which }));
  return (
    <div class="charts">
      <Chart
        title={t("tokenRates")}
        samples={shown}
        write={count}
        series={[
          { field: "generation_rate", text: t("out") },
          { field: "prompt_rate", text: t("in") },
        ]}
      />
      <Chart
        title={t("requests")}
        samples={shown}
        write={count}
        series={[
          { field: "running", text: t("running") },
          { field: "waiting", text: t("waiting") },
        ]}
      />
      <Chart title={t("timeToFirst")} samples={shown} write={seconds} series={percentiles("first_token")} />
      <Chart title={t("betweenTokens")} samples={shown} write={seconds} series={percentiles("token")} />
      <Chart title={t("kvUsage")} samples={shown} write={percent} most={1} series={[{ field: "kv_usage", text: t("used") }]} />
      <Chart
        title={t("prefixHits")}
        samples={shown}
        write={percent}
        most={1}
        series={[
          { field: "device_hits", text: t("device") },
          { field: "host_hits", text: t("host") },
        ]}
      />
    </div>
  );
}

function seconds(value: number): string {
  return value < 1 ? `${number(value * 1000, value < 0.01 ? 1 : 0)} ms` : `${number(value, 1)} s`;
}

function percent(value: number): string {
  return `${number(value * 100)} %`;
}

function Refusals({ refusals }: { refusals: Refusal[] }) {
  return (
    <section aria-labelledby="refusals">
      <h2 id="refusals">{t("refusals")}</h2>
      {refusals.length ? (
        <div class="table" tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">{t("time")}</th>
                <th scope="col">{t("status")}</th>
                <th scope="col">{t("route")}</th>
                <th scope="col">{t("why")}</th>
              </tr>
            </thead>
            <tbody>
              {refusals.map((one) => (
                <tr>
                  <td>{new Date(one.time * 1000).toLocaleTimeString(language.value)}</td>
                  <td>{one.status}</td>
                  <td>{one.route}</td>
                  <td>{one.message || one.code}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : (
        <p class="hint">{t("noRefusals")}</p>
      )}
    </section>
  );
}
