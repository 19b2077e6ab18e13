// The way from each page to the others.
import { t } from "../i18n";

const PAGES = [
  { name: "", text: "chat" },
  { name: "compare", text: "compare" },
  { name: "dashboard", text: "dashboard" },
] as const;

export function Links({ here }: { here: (typeof PAGES)[number]["name"] }) {
  return (
    <nav class="links" aria-label={t("pages")}>
      {PAGES.map(({ name, text }) => (
        <a href={`./${name}`} aria-current={name === here ? "page" : undefined}>
          {t(text)}
        </a>
      ))}
    </nav>
  );
}
