// A text's Markdown. What reads it is loaded with the first text: until then the text is shown as it is.
import { signal } from "@preact/signals";
import type { FunctionComponent } from "preact";

interface Text {
  text: string;
  growing?: boolean;
}

const loaded = signal<FunctionComponent<Text> | null>(null);
let loading = false;

async function load(): Promise<void> {
  if (loading) return;
  loading = true;
  try {
    loaded.value = (await import("./Blocks")).Blocks;
  } catch {
    loading = false; // the server is away: the next text tries again
  }
}

export function Markdown({ text, growing = false }: Text) {
  const Blocks = loaded.value;
  if (Blocks) return <Blocks text={text} growing={growing} />;
  void load();
  return <div class="markdown plain">{text}</div>;
}
