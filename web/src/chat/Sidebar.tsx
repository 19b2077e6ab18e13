// The conversations: found, opened, renamed, removed, taken out and in.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { language, t } from "../i18n";
import { Icon, IconButton } from "../ui/Icon";
import { Links } from "../ui/Links";
import { exportAll, importFile } from "./exchange";
import type { Conversation } from "./model";
import { conversations, current, remove, rename, show } from "./state";
import * as store from "./store";

const SEARCH_MS = 150;

export function Sidebar({ close }: { close: () => void }) {
  const words = useSignal("");
  const found = useSignal<Set<string> | null>(null);
  const note = useSignal("");
  useEffect(() => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!wanted.length) {
      found.value = null;
      return;
    }
    const timer = setTimeout(() => void store.search(wanted).then((ids) => (found.value = ids)), SEARCH_MS);
    return () => clearTimeout(timer);
  }, [words.value]);
  const listed = useMemo(
    () => matching(conversations.value, words.value, found.value),
    [conversations.value, words.value, found.value],
  );
  return (
    <aside class="sidebar" aria-label={t("conversations")}>
      <div class="row">
        <button
          type="button"
          class="primary grow"
          onClick={() => {
            show(null);
            close();
            document.getElementById("composer")?.focus();
          }}
        >
          <Icon name="plus" /> {t("newChat")}
        </button>
        <IconButton icon="close" label={t("close")} class="only-narrow" onClick={close} />
      </div>
      <input
        id="search"
        type="search"
        aria-label={t("search")}
        placeholder={t("search")}
        value={words.value}
        onInput={(event) => (words.value = event.currentTarget.value)}
      />
      <ul class="conversations">
        {listed.map((one) => (
          <Entry key={one.id} conversation={one} close={close} />
        ))}
      </ul>
      {!listed.length && words.value && <p class="hint">{t("nothingFound")}</p>}
      <Links here="" class="only-narrow" />
      <p class="hint" role="status">
        {note.value}
      </p>
      <div class="row">
        <button type="button" class="quiet" onClick={() => void exportAll()}>
          <Icon name="export" /> {t("export")}
        </button>
        <label class="quiet button">
          <Icon name="import" /> {t("import")}
          <input
            type="file"
            accept="application/json,.json"
            class="unseen"
            onChange={async (event) => {
              const input = event.currentTarget;
              const file = input.files?.[0];
              if (!file) return;
              const count = await importFile(file);
              note.value = count === null ? t("importFault") : t("imported", { count });
              input.value = "";
            }}
          />
        </label>
      </div>
    </aside>
  );
}

function matching(all: Conversation[], text: string, found: Set<string> | null): Conversation[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return all.filter((one) => {
    const title = one.title.toLowerCase();
    return words.every((word) => title.includes(word)) || found?.has(one.id);
  });
}

function Entry({ conversation, close }: { conversation: Conversation; close: () => void }) {
  const state = useSignal<"" | "rename" | "remove">("");
  const here = current.value?.id === conversation.id;
  if (state.value === "rename") {
    const end = (title: string): void => {
      state.value = "";
      if (title.trim()) void rename(conversation, title.trim());
    };
    return (
      <li>
        <input
          aria-label={t("title")}
          ref={(element) => element?.focus()}
          value={conversation.title}
          maxLength={200}
          onBlur={(event) => end(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") event.currentTarget.blur();
            if (event.key === "Escape") state.value = "";
          }}
        />
      </li>
    );
  }
  const day = new Date(conversation.updated).toLocaleDateString(language.value);
  return (
    <li class={here ? "here" : ""}>
      <a href={`#${conversation.id}`} aria-current={here ? "page" : undefined} title={`${conversation.title}, ${day}`} onClick={close}>
        {conversation.title || t("newChat")}
      </a>
      {state.value === "remove" ? (
        <span class="row">
          <button type="button" class="danger small" ref={(element) => element?.focus()} onClick={() => void remove(conversation)}>
            {t("remove")}
          </button>
          <IconButton icon="close" label={t("keep")} onClick={() => (state.value = "")} />
        </span>
      ) : (
        <span class="tools">
          <IconButton icon="edit" label={t("renameNamed", { title: conversation.title })} onClick={() => (state.value = "rename")} />
          <IconButton icon="trash" label={t("removeNamed", { title: conversation.title })} onClick={() => (state.value = "remove")} />
        </span>
      )}
    </li>
  );
}
