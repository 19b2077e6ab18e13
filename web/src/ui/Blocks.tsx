// A text's Markdown. Of one that grows, only the blocks that have changed are drawn anew.
import { useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { blocksOf, loadedParts, type Block } from "../markdown";
import { copyText } from "./clipboard";

const COPIED_MS = 1500;

export function Blocks({ text, growing = false }: { text: string; growing?: boolean }) {
  const element = useRef<HTMLDivElement>(null);
  const earlier = useRef<{ blocks: Block[]; loaded: number }>({ blocks: [], loaded: 0 });
  const drawn = useRef<string[]>([]);
  const loaded = loadedParts.value;
  const blocks = blocksOf(text, earlier.current.loaded === loaded ? earlier.current.blocks : [], growing);
  earlier.current = { blocks, loaded };
  const copy = t("copy");
  useLayoutEffect(() => {
    if (element.current) drawn.current = draw(element.current, blocks, drawn.current, copy);
  });
  return <div ref={element} class="markdown" onClick={onClick} />;
}

/** An element for each block. Those that are as they were are left alone, without a look at the document: an answer
 * may have a thousand. `drawn` is what was drawn before; returns what is now. */
function draw(element: HTMLElement, blocks: Block[], drawn: string[], copy: string): string[] {
  const wanted = blocks.map(({ html }) => html).filter(Boolean);
  let same = 0;
  while (same < wanted.length && wanted[same] === drawn[same]) same++;
  for (let index = drawn.length; index > wanted.length; index--) element.lastElementChild?.remove();
  for (let index = same; index < wanted.length; index++) {
    if (wanted[index] === drawn[index]) continue;
    const block = index < drawn.length ? element.children[index] : element.appendChild(document.createElement("div"));
    if (!block) continue;
    block.innerHTML = wanted[index] ?? "";
    for (const button of block.querySelectorAll("button.copy")) button.textContent = copy;
  }
  return wanted;
}

function onClick(event: MouseEvent): void {
  const button = event.target;
  if (!(button instanceof HTMLButtonElement) || !button.classList.contains("copy")) return;
  void copyText(button.closest("figure")?.querySelector("code")?.textContent ?? "").then(() => {
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), COPIED_MS);
  });
}
