// The comparison at /compare.
import { render } from "preact";
import { loadSettings } from "../api";
import { startLanguage } from "../i18n";
import { startTheme } from "../theme";
import { Compare } from "./Compare";

startTheme();
await startLanguage();
render(<Compare />, document.getElementById("app") as HTMLElement);
void loadSettings();
