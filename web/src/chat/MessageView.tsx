// One message: its text, what belongs to it, and what can be done with it.
import { useSignal } from "@preact/signals";
import { number, t } from "../i18n";
import { rateOf } from "../rate";
import { copyText } from "../ui/clipboard";
import { Icon, IconButton } from "../ui/Icon";
import { Markdown } from "../ui/Markdown";
import { answering } from "./answer";
import { Calls } from "./Calls";
import { siblings, type Message } from "./model";
import { edit, grown, messages, open, regenerate, resume, showSibling } from "./state";

export function MessageView({ message }: { message: Message }) {
  const edits = useSignal(false);
  const name = message.role === "user" ? t("you") : message.role === "tool" ? t("toolResult") : (message.model ?? t("assistant"));
  return (
    <li class={`message ${message.role}`} data-state={message.state}>
      <article aria-label={name}>
        <h2 class={message.role === "user" ? "unseen" : "author"}>{name}</h2>
        {edits.value ? (
          <Editor message={message} close={() => (edits.value = false)} />
        ) : message.role === "assistant" ? (
          <Answer message={message} />
        ) : (
          <Given message={message} />
        )}
        {!edits.value && <Actions message={message} startEdit={() => (edits.value = true)} />}
      </article>
    </li>
  );
}

function Given({ message }: { message: Message }) {
  return (
    <div class="bubble">
      <div class="plain">{message.content}</div>
      {message.files?.map(({ name, text }) => (
        <details class="file">
          <summary>
            <Icon name="file" /> {name}
          </summary>
          <pre tabIndex={0}>{text}</pre>
        </details>
      ))}
    </div>
  );
}

function Answer({ message }: { message: Message }) {
  const growing = message.state === "open";
  if (growing) grown.value; // read, so that each growth draws it again
  const waiting = answering.value.get(message.id);
  return (
    <>
      {message.reasoning && (
        <details class="reasoning">
          <summary>{growing && !message.content ? t("thinking") : t("thought")}</summary>
          <Markdown text={message.reasoning} growing={growing} />
        </details>
      )}
      {message.content && <Markdown text={message.content} growing={growing} />}
      {message.calls && <Calls message={message} calls={message.calls} />}
      {growing && !message.content && !message.reasoning && !waiting && <p class="pending" aria-label={t("thinking")} />}
      {growing && waiting && (
        <p class="hint" role="status">
          {waiting === "lost" ? t("connectionLost") : `${waiting} ${t("triedAgain")}`}
        </p>
      )}
      {growing && waiting === undefined && <p class="hint">{t("otherTab")}</p>}
      {message.state === "failed" && (
        <p class="fault" role="alert">
          {message.error}
        </p>
      )}
      {message.state === "stopped" && <p class="hint">{t("stopped")}</p>}
      {message.finish === "length" && <p class="hint">{t("cut")}</p>}
    </>
  );
}

function Actions({ message, startEdit }: { message: Message; startEdit: () => void }) {
  const copied = useSignal(false);
  const busy = open.value !== null;
  const all = siblings(messages.value, message);
  const place = all.findIndex((one) => one.id === message.id);
  const copy = async (): Promise<void> => {
    await copyText(message.content);
    copied.value = true;
    setTimeout(() => (copied.value = false), 1500);
  };
  return (
    <footer class="actions">
      {all.length > 1 && (
        <span class="siblings" role="group" aria-label={t("versions")}>
          <IconButton icon="left" label={t("previous")} disabled={place === 0} onClick={() => void showSibling(message, -1)} />
          {t("ofCount", { place: place + 1, count: all.length })}
          <IconButton
            icon="right"
            label={t("next")}
            disabled={place === all.length - 1}
            onClick={() => void showSibling(message, 1)}
          />
        </span>
      )}
      {message.state !== "open" && (
        <>
          <IconButton icon={copied.value ? "check" : "copy"} label={t("copy")} onClick={() => void copy()} />
          {message.role === "user" && <IconButton icon="edit" label={t("edit")} disabled={busy} onClick={startEdit} />}
          {message.role === "assistant" && (
            <IconButton icon="again" label={t("again")} disabled={busy} onClick={() => void regenerate(message)} />
          )}
          {(message.state === "stopped" || message.state === "failed") && (
            <IconButton icon="play" label={t("goOn")} disabled={busy} onClick={() => void resume(message)} />
          )}
        </>
      )}
      <FiguresOf message={message} />
    </footer>
  );
}

function FiguresOf({ message }: { message: Message }) {
  if (message.state === "open") grown.value;
  const figures = message.figures;
  if (!figures?.tokens) return null;
  const parts = [t("tokens", { count: number(figures.tokens) })];
  const rate = rateOf(figures.tokens, figures.making);
  if (rate) parts.unshift(rate);
  if (figures.firstToken !== null) parts.push(t("firstToken", { time: number(figures.firstToken) }));
  parts.push(t("promptTokens", { count: number(figures.promptTokens), cached: number(figures.cachedTokens) }));
  return <span class="figures">{parts.join(" · ")}</span>;
}

function focus(element: HTMLElement | null): void {
  element?.focus();
}

function Editor({ message, close }: { message: Message; close: () => void }) {
  const text = useSignal(message.content);
  const send = (): void => {
    close();
    void edit(message, text.value);
  };
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        aria-label={t("edit")}
        ref={focus}
        rows={Math.min(12, text.value.split("\n").length + 1)}
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") close();
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            send();
          }
        }}
      />
      <div class="row end">
        <button type="button" onClick={close}>
          {t("cancel")}
        </button>
        <button type="submit" class="primary" disabled={!text.value.trim()}>
          {t("send")}
        </button>
      </div>
    </form>
  );
}
