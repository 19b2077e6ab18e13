// What the keyboard does.
import { t, type TextKey } from "../i18n";
import { Dialog } from "../ui/Dialog";

const SHORTCUTS: [string, TextKey][] = [
  ["Enter", "shortcutSend"],
  ["Shift Enter", "shortcutLine"],
  ["↑", "shortcutEdit"],
  ["Escape", "shortcutStop"],
  ["Ctrl Shift O", "newChat"],
  ["Ctrl K", "search"],
  ["Ctrl ,", "settings"],
  ["/", "shortcutWrite"],
  ["?", "shortcuts"],
];

export function ShortcutsDialog({ close }: { close: () => void }) {
  return (
    <Dialog title={t("shortcuts")} onClose={close}>
      <dl class="shortcuts">
        {SHORTCUTS.map(([keys, text]) => (
          <div>
            <dt>
              {keys.split(" ").map((key) => (
                <kbd>{key}</kbd>
              ))}
            </dt>
            <dd>{t(text)}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
