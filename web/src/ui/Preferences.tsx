// Language and colours.
import { chooseLanguage, language, LANGUAGES, t } from "../i18n";
import { chooseTheme, theme, THEMES, type Theme } from "../theme";

const THEME_TEXTS = { auto: "themeAuto", light: "themeLight", dark: "themeDark" } as const;

export function Preferences() {
  return (
    <div class="row wrap">
      <label class="field">
        {t("language")}
        <select value={language.value} onChange={(event) => void chooseLanguage(event.currentTarget.value)}>
          {Object.entries(LANGUAGES).map(([name, text]) => (
            <option value={name} lang={name}>
              {text}
            </option>
          ))}
        </select>
      </label>
      <label class="field">
        {t("theme")}
        <select value={theme.value} onChange={(event) => chooseTheme(event.currentTarget.value as Theme)}>
          {THEMES.map((name) => (
            <option value={name}>{t(THEME_TEXTS[name])}</option>
          ))}
        </select>
      </label>
    </div>
  );
}
