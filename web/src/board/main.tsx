// The board at /dashboard.
import { render } from "preact";
import { loadSettings } from "../api";
import { startLanguage } from "../i18n";
import { startTheme } from "../theme";
import { Board } from "./Board";
import { follow } from "./feed";

startTheme();
await startLanguage();
render(<Board />, document.getElementById("app") as HTMLElement);
void loadSettings();
void follow();
