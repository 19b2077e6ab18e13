// Markdown to HTML that is safe to show, one block after the other: of a text that grows only the last ones change.
import { signal } from "@preact/signals";
import DOMPurify from "dompurify";
import { Marked, type Token, type TokenizerAndRendererExtension, type Tokens } from "marked";

export interface Block {
  raw: string;
  html: string;
}

type Highlight = (code: string, language: string) => string | null;
type Typeset = (source: string, display: boolean) => string;

/** Counts what was loaded since the page began: blocks that waited for it are made again. */
export const loadedParts = signal(0);
let highlight: Highlight | null = null;
let typeset: Typeset | null = null;
const loading = new Set<string>();

function load(name: string, get: () => Promise<void>): void {
  if (loading.has(name)) return;
  loading.add(name);
  get()
    .then(() => loadedParts.value++)
    .catch(() => loading.delete(name));
}

const needHighlight = (): void => load("code", async () => void (highlight = (await import("./highlight")).highlight));
const needTypeset = (): void => load("math", async () => void (typeset = (await import("./math")).typeset));

function escape(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (one) => entities[one] ?? one);
}

function math(source: string, display: boolean): string {
  if (typeset) return typeset(source, display);
  needTypeset();
  return `<code>${escape(source)}</code>`;
}

/** An extension of marked: what the expression finds is a formula, whose source is its first group. */
function formula(name: string, level: "block" | "inline", begin: RegExp, whole: RegExp): TokenizerAndRendererExtension {
  return {
    name,
    level,
    start: (text: string) => text.match(begin)?.index,
    tokenizer(text: string) {
      const found = whole.exec(text);
      return found ? { type: name, raw: found[0], source: found[1] ?? "" } : undefined;
    },
    renderer: (token) => math(String(token["source"]), level === "block"),
  };
}

const parser = new Marked({ gfm: true, breaks: false });
parser.use({
  extensions: [
    formula("dollars", "block", /\$\$/, /^\$\$([^$]+?)\$\$(?:\n|$)/),
    formula("brackets", "block", /\\\[/, /^\\\[([\s\S]+?)\\\](?:\n|$)/),
    formula("parentheses", "inline", /\\\(/, /^\\\(([\s\S]+?)\\\)/),
    // Not money: no space inside, and no digit behind.
    formula("dollar", "inline", /\$/, /^\$(?![\s$])([^$\n]*?[^\s$\\])\$(?!\d)/),
  ],
  renderer: {
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escape(text),
    image: ({ href, text }: Tokens.Image) => link(href, escape(text || href)),
    link({ href, tokens }: Tokens.Link) {
      return link(href, this.parser.parseInline(tokens));
    },
    code: ({ text, lang }: Tokens.Code) => codeBlock(text, (lang ?? "").trim().split(/\s/)[0] ?? "", true),
    // Below the heading that names the author, whatever levels the model leaves out.
    heading({ depth, tokens }: Tokens.Heading) {
      return `<h3 class="depth-${depth}">${this.parser.parseInline(tokens)}</h3>`;
    },
    checkbox: ({ checked }: Tokens.Checkbox) => (checked ? "☑ " : "☐ "),
  },
});

function link(href: string, inner: string): string {
  if (!/^(https?:|mailto:)/i.test(href)) return inner;
  return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${inner}</a>`;
}

/** The buttons get their words and their work from the page. */
function codeBlock(code: string, language: string, complete: boolean): string {
  let inner: string | null = null;
  if (complete && language) {
    if (highlight) inner = highlight(code, language);
    else needHighlight();
  }
  const head = `<figcaption><span>${escape(language)}</span><button type="button" class="copy"></button></figcaption>`;
  return `<figure class="code">${head}<pre tabindex="0"><code>${inner ?? escape(code)}</code></pre></figure>`;
}

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

function clean(html: string): string {
  return DOMPurify.sanitize(html, {
    USE_PROFILES: { html: true, mathMl: true },
    ADD_ATTR: ["target"],
    FORBID_TAGS: ["img", "form", "input", "style", "video", "audio", "iframe"],
    FORBID_ATTR: ["style", "id", "name"],
  });
}

/** Whether a fence at the end of a block closes it. */
function closed(token: Token): boolean {
  return token.type !== "code" || !/^ {0,3}(```|~~~)/.test(token.raw) || /\n {0,3}(`{3,}|~{3,})\s*$/.test(token.raw);
}

function render(token: Token, growing: boolean): string {
  if (growing && !closed(token)) {
    const { text, lang } = token as Tokens.Code;
    return clean(codeBlock(text, lang ?? "", false));
  }
  try {
    return clean(parser.parser([token]));
  } catch {
    return asWritten(token.raw);
  }
}

/** A text that can't be read as Markdown: a thousand lists within each other, for instance. */
function asWritten(text: string): string {
  return `<p class="plain">${escape(text)}</p>`;
}

/** The blocks of a text. `earlier` are those of its beginning, if it has grown since; `growing`: it goes on. */
export function blocksOf(text: string, earlier: Block[], growing: boolean): Block[] {
  // The last two may change by what follows them.
  const kept: Block[] = [];
  let length = 0;
  for (const block of earlier.slice(0, -2)) {
    if (!text.startsWith(block.raw, length)) break;
    kept.push(block);
    length += block.raw.length;
  }
  const rest = text.slice(length);
  let tokens: Token[];
  try {
    tokens = parser.lexer(rest).filter((token) => token.raw);
  } catch {
    return [...kept, { raw: rest, html: asWritten(rest) }];
  }
  const blocks = tokens.map((token, index) => {
    const last = index === tokens.length - 1;
    const before = earlier[kept.length + index];
    if (before?.raw === token.raw && !last) return before;
    return { raw: token.raw, html: token.type === "space" ? "" : render(token, growing && last) };
  });
  return [...kept, ...blocks];
}
