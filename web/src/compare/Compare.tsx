// One prompt and two answers, side by side.
import { computed, signal, useSignal } from "@preact/signals";
import { serverSettings } from "../api";
import { t } from "../i18n";
import { Dialog } from "../ui/Dialog";
import { IconButton } from "../ui/Icon";
import { KeyDialog } from "../ui/KeyDialog";
import { Links } from "../ui/Links";
import { Preferences } from "../ui/Preferences";
import { Side } from "./side";
import { SideView } from "./SideView";

const sides = [new Side(), new Side()];
const prompt = signal("");
const system = signal("");
const runs = computed(() => sides.some((side) => side.result.value.state === "open"));

function run(): void {
  if (runs.value || !prompt.value.trim()) return;
  for (const side of sides) void side.run(prompt.value, system.value, serverSettings.value?.models ?? []);
}

export function Compare() {
  const preferences = useSignal(false);
  return (
    <div class="compare">
      <header class="bar">
        <h1>{t("compare")}</h1>
        <Links here="compare" />
        <IconButton icon="settings" label={t("settings")} onClick={() => (preferences.value = true)} />
      </header>
      <main>
        <form
          class="stack"
          onSubmit={(event) => {
            event.preventDefault();
            run();
          }}
        >
          <details open={system.value !== ""}>
            <summary>{t("systemPrompt")}</summary>
            <textarea
              rows={2}
              aria-label={t("systemPrompt")}
              value={system.value}
              onInput={(event) => (system.value = event.currentTarget.value)}
            />
          </details>
          <label class="field">
            {t("prompt")}
            <textarea
              rows={3}
              value={prompt.value}
              onInput={(event) => (prompt.value = event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
                event.preventDefault();
                run();
              }}
            />
          </label>
          <div class="row">
            {/* Two buttons, not one that changes: the click that stops must not submit. */}
            {runs.value ? (
              <button key="stop" type="button" class="primary" onClick={() => sides.forEach((side) => side.stop())}>
                {t("stop")}
              </button>
            ) : (
              <button key="run" type="submit" class="primary" disabled={!prompt.value.trim()}>
                {t("answerBoth")}
              </button>
            )}
            <p class="hint">{t("compareHint")}</p>
          </div>
        </form>
        <div class="sides">
          {sides.map((side, index) => (
            <SideView side={side} name={index === 0 ? "A" : "B"} />
          ))}
        </div>
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
