// What the conversation's requests say beside its messages, and the page's own preferences.
import { useState } from "preact/hooks";
import { forgetKeys, hasKey, serverSettings } from "../api";
import { t } from "../i18n";
import { Dialog } from "../ui/Dialog";
import { Preferences } from "../ui/Preferences";
import { SamplingFields } from "../ui/SamplingFields";
import { NO_SETTINGS } from "./model";
import { changeSettings, settings } from "./state";

export function SettingsDialog({ close }: { close: () => void }) {
  const value = settings.value;
  const change = (changed: typeof value): void => void changeSettings(changed);
  return (
    <Dialog title={t("settings")} onClose={close}>
      <div class="stack">
        <label class="field">
          {t("systemPrompt")}
          <textarea
            rows={4}
            value={value.system}
            onInput={(event) => change({ ...value, system: event.currentTarget.value })}
          />
        </label>
        <fieldset>
          <legend>{t("sampling")}</legend>
          <p class="hint">{t("samplingHint")}</p>
          <SamplingFields value={value} onChange={change} />
        </fieldset>
        <Tools text={value.tools} onChange={(tools) => change({ ...value, tools })} />
        <div class="row wrap">
          <button type="button" onClick={() => change({ ...NO_SETTINGS, model: value.model })}>
            {t("defaults")}
          </button>
          {hasKey("api") && (
            <button type="button" onClick={forgetKeys}>
              {t("forgetKey")}
            </button>
          )}
        </div>
        <Preferences />
        <p class="hint">minisgl {serverSettings.value?.version}</p>
      </div>
    </Dialog>
  );
}

function Tools({ text, onChange }: { text: string; onChange: (text: string) => void }) {
  const [draft, setDraft] = useState(text);
  const fault = draft.trim() !== "" && !isList(draft);
  return (
    <details open={text !== ""}>
      <summary>{t("tools")}</summary>
      <label class="field">
        {t("toolsHint")}
        <textarea
          rows={5}
          class="code-text"
          spellcheck={false}
          aria-invalid={fault}
          value={draft}
          onInput={(event) => {
            const written = event.currentTarget.value;
            setDraft(written);
            if (written.trim() === "" || isList(written)) onChange(written);
          }}
        />
      </label>
      {fault && (
        <p class="fault" role="alert">
          {t("toolsFault")}
        </p>
      )}
    </details>
  );
}

function isList(text: string): boolean {
  try {
    return Array.isArray(JSON.parse(text));
  } catch {
    return false;
  }
}
