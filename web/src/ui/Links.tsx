// The way from each page to the others.
import { t } from "../i18n";

const PAGES = [
  { name: "", text: "chat" },
  { name: "compare", text: "compare" },
  { name: "dashboard", text: "dashboard" },
] as const;

interface Links {
  here: (typeof PAGES)[number]["name"];
  class?: string;
}

export function Links({ here, class: more = "" }: Links) {
  return (
    <nav class={`links ${more}`} aria-label={t("pages")}>
      {PAGES.map(({ name, text }) => (
        <a href={`./${name}`} aria-current={name === here ? "page" : undefined}>
          {t(text)}
        </a>
      ))}
    </nav>
  );
}
