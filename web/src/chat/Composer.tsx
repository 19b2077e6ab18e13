// What is written next, and files of text that go with it.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { Icon, IconButton } from "../ui/Icon";
import type { TextFile } from "./model";
import { current, open, send, shown, stopAnswer } from "./state";

const MAX_FILE_BYTES = 2 ** 20;

export function Composer() {
  const text = useSignal("");
  const files = useSignal<TextFile[]>([]);
  const refused = useSignal("");
  const over = useSignal(false);
  const area = useRef<HTMLTextAreaElement>(null);
  const id = current.value?.id;
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) area.current?.focus();
  }, [id]);
  const take = async (given: Iterable<File>): Promise<void> => {
    const read = await Promise.all([...given].map(readText));
    files.value = [...files.value, ...read.filter((one) => typeof one !== "string")];
    refused.value = read.filter((one) => typeof one === "string").join(", ");
  };
  useDropped(take, over);
  const submit = (): void => {
    if (open.value || !(text.value.trim() || files.value.length)) return;
    void send(text.value, files.value);
    text.value = "";
    files.value = [];
    refused.value = "";
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    } else if (event.key === "ArrowUp" && !text.value) {
      event.preventDefault();
      editLast();
    }
  };
  return (
    <form
      class={`composer ${over.value ? "over" : ""}`}
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      {(files.value.length > 0 || refused.value) && (
        <ul class="files">
          {files.value.map((file) => (
            <li>
              <Icon name="file" /> {file.name}
              <IconButton
                icon="close"
                label={t("removeNamed", { title: file.name })}
                onClick={() => (files.value = files.value.filter((one) => one !== file))}
              />
            </li>
          ))}
          {refused.value && (
            <li class="fault" role="alert">
              {t("fileFault", { names: refused.value })}
            </li>
          )}
        </ul>
      )}
      <div class="row">
        <label class="icon-button button" title={t("addFiles")}>
          <Icon name="file" />
          <input
            type="file"
            multiple
            class="unseen"
            aria-label={t("addFiles")}
            onChange={async (event) => {
              const input = event.currentTarget;
              await take(input.files ?? []);
              input.value = "";
            }}
          />
        </label>
        <textarea
          id="composer"
          ref={area}
          rows={1}
          aria-label={t("message")}
          placeholder={t("message")}
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {open.value ? (
          <IconButton icon="stop" label={t("stop")} class="round" onClick={stopAnswer} />
        ) : (
          <button
            type="submit"
            class="icon-button round"
            aria-label={t("send")}
            title={t("send")}
            disabled={!text.value.trim() && !files.value.length}
          >
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}

/** Files that are dropped anywhere on the page. */
function useDropped(take: (files: Iterable<File>) => Promise<void>, over: { value: boolean }): void {
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => {
    // A text that is dragged is the browser's own matter.
    const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
    const onOver = (event: DragEvent): void => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      over.value = true;
    };
    const onLeave = (event: DragEvent): void => {
      if (!event.relatedTarget) over.value = false;
    };
    const onDrop = (event: DragEvent): void => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      over.value = false;
      void latest.current(event.dataTransfer?.files ?? []);
    };
    addEventListener("dragover", onOver);
    addEventListener("dragleave", onLeave);
    addEventListener("drop", onDrop);
    return () => {
      removeEventListener("dragover", onOver);
      removeEventListener("dragleave", onLeave);
      removeEventListener("drop", onDrop);
    };
  }, []);
}

/** A file's text; its name where it has none, or too much. */
async function readText(file: File): Promise<TextFile | string> {
  if (file.size > MAX_FILE_BYTES) return file.name;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? file.name : { name: file.name, text };
  } catch {
    return file.name;
  }
}

function editLast(): void {
  if (!shown.value.some((one) => one.role === "user")) return;
  const buttons = document.querySelectorAll<HTMLButtonElement>(`.message.user .actions button[aria-label="${t("edit")}"]`);
  [...buttons].at(-1)?.click();
}
