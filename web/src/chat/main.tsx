// The chat at /.
import { render } from "preact";
import { loadSettings } from "../api";
import { startLanguage } from "../i18n";
import { startTheme } from "../theme";
import { App } from "./App";
import { start } from "./state";

startTheme();
await startLanguage();
render(<App />, document.getElementById("app") as HTMLElement);
void loadSettings();
void start();
