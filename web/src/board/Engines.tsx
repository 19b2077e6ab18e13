// Each replica and its ranks, and what an operator may do with them.
import { useSignal } from "@preact/signals";
import { number, t } from "../i18n";
import { Icon } from "../ui/Icon";
import { change, changes } from "./changes";
import type { Rank, Replica, ServerState } from "./feed";

const DRAIN_SECONDS = 30;

export function Engines({ state }: { state: ServerState }) {
  return (
    <section aria-labelledby="engines">
      <div class="row">
        <h2 id="engines" class="grow">
          {state.replicas.length ? t("replicas") : t("ranks")}
        </h2>
        {state.operators && (
          <button type="button" onClick={() => void change("POST", "")}>
            <Icon name="plus" /> {t("addReplica")}
          </button>
        )}
      </div>
      {state.replicas.length ? (
        <ul class="replicas">
          {state.replicas.map((one) => (
            <ReplicaCard key={one.number} replica={one} operators={state.operators} />
          ))}
        </ul>
      ) : (
        <Ranks name={state.model} ranks={state.ranks} state={state.state} />
      )}
      <div class="changes" role="status">
        {changes.value.map((text) => (
          <p>{text}</p>
        ))}
      </div>
    </section>
  );
}

function ReplicaCard({ replica, operators }: { replica: Replica; operators: boolean }) {
  return (
    <li>
      <div class="row wrap">
        <h3 class="grow">
          <span class={`dot ${replica.state}`} />
          {t("replicaState", { number: replica.number, state: [replica.state, replica.phase].filter(Boolean).join(": ") })}
        </h3>
        {operators && <ReplicaActions number={replica.number} />}
      </div>
      <p class="hint">
        {[
          replica.place,
          [replica.model, replica.revision].filter(Boolean).join(" @ "),
          t("liveCount", { count: number(replica.live) }),
          t("waitingTokens", { count: number(replica.waiting_tokens) }),
          t("kvShare", { share: number(replica.kv_usage * 100) }),
          t("restartCount", { count: number(replica.restarts) }),
        ]
          .filter(Boolean)
          .join(" · ")}
      </p>
      <Ranks name={String(replica.number)} ranks={replica.ranks} state={replica.state} />
    </li>
  );
}

/** Each is done after a second click, with which the person says that it is meant. */
function ReplicaActions({ number }: { number: number }) {
  const asked = useSignal<"" | "restart" | "remove">("");
  const drains = useSignal(true);
  if (!asked.value) {
    return (
      <span class="row">
        <button type="button" class="small" onClick={() => (asked.value = "restart")}>
          {t("restart")}
        </button>
        <button type="button" class="small danger" onClick={() => (asked.value = "remove")}>
          {t("remove")}
        </button>
      </span>
    );
  }
  const run = (): void => {
    const query = drains.value ? `?drain=${DRAIN_SECONDS}` : "";
    if (asked.value === "restart") void change("POST", `/${number}/restart${query}`);
    else void change("DELETE", `/${number}${query}`);
    asked.value = "";
  };
  return (
    <span class="row wrap">
      <label class="row check">
        <input type="checkbox" checked={drains.value} onChange={(event) => (drains.value = event.currentTarget.checked)} />
        {t("drainFirst", { seconds: DRAIN_SECONDS })}
      </label>
      <button type="button" class="small danger" ref={(element) => element?.focus()} onClick={run}>
        {asked.value === "restart" ? t("restartNumber", { number }) : t("removeNumber", { number })}
      </button>
      <button type="button" class="small" onClick={() => (asked.value = "")}>
        {t("cancel")}
      </button>
    </span>
  );
}

function Ranks({ name, ranks, state }: { name: string; ranks: Rank[]; state: string }) {
  if (!ranks.length) return null;
  return (
    <div class="table" tabIndex={0} role="region" aria-label={t("ranksOf", { name })}>
      <table>
        <thead>
          <tr>
            <th scope="col">{t("rank")}</th>
            <th scope="col">{t("device")}</th>
            <th scope="col">{t("state")}</th>
            <th scope="col">{t("weights")}</th>
            <th scope="col">{t("kvCache")}</th>
            <th scope="col">{t("workspace")}</th>
            <th scope="col">{t("free")}</th>
          </tr>
        </thead>
        <tbody>
          {ranks.map((one, index) => (
            <tr>
              <th scope="row">{index}</th>
              <td>{[one.device, one.cores].filter(Boolean).join(", ")}</td>
              <td>{state}</td>
              <td>{bytes(one.weight_bytes)}</td>
              <td>{bytes(one.kv_cache_bytes)}</td>
              <td>{bytes(one.workspace_bytes + one.graph_bytes)}</td>
              <td>{bytes(one.free_bytes)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function bytes(count: number): string {
  if (!count) return "–";
  return count >= 1e9 ? `${number(count / 1e9, 2)} GB` : `${number(count / 1e6, 1)} MB`;
}
