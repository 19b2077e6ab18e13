// A text's Markdown. Of one that grows, only the blocks that have changed are made anew.
import { useEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { blocksOf, loadedParts, type Block } from "../markdown";
import { copyText } from "./clipboard";

const COPIED_MS = 1500;

export function Markdown({ text, growing = false }: { text: string; growing?: boolean }) {
  const element = useRef<HTMLDivElement>(null);
  const earlier = useRef<{ blocks: Block[]; loaded: number }>({ blocks: [], loaded: 0 });
  const loaded = loadedParts.value;
  const blocks = blocksOf(text, earlier.current.loaded === loaded ? earlier.current.blocks : [], growing);
  earlier.current = { blocks, loaded };
  const copy = t("copy");
  useEffect(() => {
    for (const button of element.current?.querySelectorAll("button.copy") ?? []) {
      if (!button.textContent) button.textContent = copy;
    }
  });
  return (
    <div ref={element} class="markdown" onClick={(event) => onClick(event)}>
      {blocks.map(({ html }, index) => html && <Html key={index} html={html} />)}
    </div>
  );
}

function Html({ html }: { html: string }) {
  return <div dangerouslySetInnerHTML={{ __html: html }} />;
}

function onClick(event: MouseEvent): void {
  const button = event.target;
  if (!(button instanceof HTMLButtonElement) || !button.classList.contains("copy")) return;
  void copyText(button.closest("figure")?.querySelector("code")?.textContent ?? "").then(() => {
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), COPIED_MS);
  });
}
