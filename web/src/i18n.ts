// Texts of the pages: a file of locales/ for each language.
import { signal } from "@preact/signals";
import english from "./locales/en.json";

/** Languages by the name of their file. */
export const LANGUAGES: Record<string, string> = { en: "English", de: "Deutsch" };

export type TextKey = keyof typeof english;

const CHOICE = "minisgl-language";
const texts = signal<Record<TextKey, string>>(english);
export const language = signal("en");

/** The text in the person's language; `{name}` in it becomes values.name. */
export function t(key: TextKey, values: Record<string, string | number> = {}): string {
  return texts.value[key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** Takes the language that was chosen, or the first of the browser's that there is. */
export async function startLanguage(): Promise<void> {
  const wanted = [localStorage.getItem(CHOICE) ?? "", ...navigator.languages.map((one) => one.slice(0, 2))];
  await load(wanted.find((one) => one in LANGUAGES) ?? "en");
}

export async function chooseLanguage(name: string): Promise<void> {
  localStorage.setItem(CHOICE, name);
  await load(name);
}

async function load(name: string): Promise<void> {
  if (name !== "en") {
    const file = (await import(`./locales/${name}.json`)) as { default: Record<TextKey, string> };
    texts.value = { ...english, ...file.default };
  } else {
    texts.value = english;
  }
  language.value = name;
  document.documentElement.lang = name;
}

/** A number as the language writes it. */
export function number(value: number, digits = 0): string {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString(language.value, options);
}
