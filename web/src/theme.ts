// Light, dark, or as the system has it.
import { signal } from "@preact/signals";

export const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const CHOICE = "minisgl-theme";
export const theme = signal<Theme>("auto");

export function startTheme(): void {
  const chosen = localStorage.getItem(CHOICE) as Theme | null;
  chooseTheme(chosen && THEMES.includes(chosen) ? chosen : "auto");
}

export function chooseTheme(chosen: Theme): void {
  theme.value = chosen;
  localStorage.setItem(CHOICE, chosen);
  document.documentElement.dataset["theme"] = chosen;
}
