// Asks for a key where the server wants one.
import { useState } from "preact/hooks";
import { keyWanted } from "../api";
import { t } from "../i18n";
import { Dialog } from "./Dialog";

export function KeyDialog() {
  const [key, setKey] = useState("");
  const wanted = keyWanted.value;
  if (!wanted) return null;
  const answer = (given: string | null): void => {
    setKey("");
    wanted.answer(given);
  };
  return (
    <Dialog title={wanted.kind === "api" ? t("keyTitle") : t("operatorKeyTitle")} onClose={() => answer(null)}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          answer(key.trim());
        }}
      >
        {wanted.wrong && (
          <p class="fault" role="alert">
            {t("keyWrong")}
          </p>
        )}
        <label class="field">
          {t("key")}
          <input
            type="password"
            autocomplete="off"
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
            required
          />
        </label>
        <p class="hint">{t("keyKept")}</p>
        <div class="row end">
          <button type="submit" class="primary">
            {t("useKey")}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
