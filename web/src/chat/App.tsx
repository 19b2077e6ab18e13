// The chat as a whole: conversations at the side, the one that is open, and what is written next.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { serverSettings } from "../api";
import { t, type TextKey } from "../i18n";
import { IconButton } from "../ui/Icon";
import { KeyDialog } from "../ui/KeyDialog";
import { Links } from "../ui/Links";
import { Composer } from "./Composer";
import { SettingsDialog } from "./SettingsDialog";
import { ShortcutsDialog } from "./ShortcutsDialog";
import { Sidebar } from "./Sidebar";
import { announcement, changeSettings, current, model, open, settings, show, stopAnswer } from "./state";
import { Thread } from "./Thread";

const ANNOUNCEMENTS: Record<typeof announcement.value, TextKey | null> = {
  "": null,
  begun: "answerBegun",
  complete: "answerComplete",
  stopped: "answerStopped",
  failed: "answerFailed",
};

export type DialogName = "" | "settings" | "shortcuts";

export function App() {
  const dialog = useSignal<DialogName>("");
  const sidebar = useSignal(false);
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => void pressed(event, (name) => (dialog.value = name));
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const said = ANNOUNCEMENTS[announcement.value];
  return (
    <div class={`chat ${sidebar.value ? "with-sidebar" : ""}`}>
      <a class="skip" href="#composer" onClick={focusComposer}>
        {t("skip")}
      </a>
      <Sidebar close={() => (sidebar.value = false)} />
      <main>
        <header class="bar">
          <IconButton
            icon="menu"
            label={t("conversations")}
            class="only-narrow"
            expanded={sidebar.value}
            onClick={() => (sidebar.value = !sidebar.value)}
          />
          <h1>{current.value?.title || t("newChat")}</h1>
          <Links here="" class="only-wide" />
          <ModelChoice />
          <IconButton icon="help" label={t("shortcuts")} class="only-wide" onClick={() => (dialog.value = "shortcuts")} />
          <IconButton icon="settings" label={t("settings")} onClick={() => (dialog.value = "settings")} />
        </header>
        <Thread />
        <Composer />
      </main>
      <p class="unseen" role="status">
        {said && t(said)}
      </p>
      {dialog.value === "settings" && <SettingsDialog close={() => (dialog.value = "")} />}
      {dialog.value === "shortcuts" && <ShortcutsDialog close={() => (dialog.value = "")} />}
      <KeyDialog />
    </div>
  );
}

function ModelChoice() {
  const models = serverSettings.value?.models ?? [];
  if (!models.length) return <span class="hint">{t("connecting")}</span>;
  return (
    <select
      class="models"
      aria-label={t("model")}
      value={model.value}
      onChange={(event) => void changeSettings({ ...settings.value, model: event.currentTarget.value })}
    >
      {models.map((name) => (
        <option>{name}</option>
      ))}
    </select>
  );
}

function focusComposer(event?: Event): void {
  event?.preventDefault();
  document.getElementById("composer")?.focus();
}

function pressed(event: KeyboardEvent, openDialog: (name: DialogName) => void): void {
  if (document.querySelector("dialog[open]")) return;
  const writes = event.target instanceof Element && event.target.matches("input, textarea, select");
  const combined = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && open.value) stopAnswer();
  else if (combined && event.key === "k") document.getElementById("search")?.focus();
  else if (combined && event.shiftKey && event.key.toLowerCase() === "o") show(null);
  else if (combined && event.key === ",") openDialog("settings");
  else if (!writes && !combined && event.key === "/") focusComposer();
  else if (!writes && !combined && event.key === "?") openDialog("shortcuts");
  else return;
  event.preventDefault();
}
