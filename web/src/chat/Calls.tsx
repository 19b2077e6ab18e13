// The calls of tools that an answer makes, and a place to say what each of them gave.
import { useSignal } from "@preact/signals";
import { t } from "../i18n";
import { Icon } from "../ui/Icon";
import type { Message, ToolCall } from "./model";
import { answerCall, shown } from "./state";

export function Calls({ message, calls }: { message: Message; calls: ToolCall[] }) {
  const answered = new Set(shown.value.map((one) => one.callId));
  const last = shown.value.findLast((one) => one.role === "assistant")?.id === message.id;
  return (
    <ul class="calls">
      {calls.map((call) => (
        <li key={call.id}>
          <details open>
            <summary>
              <Icon name="tool" /> {call.name}
            </summary>
            <pre tabIndex={0}>{readable(call.arguments)}</pre>
          </details>
          {last && message.state === "done" && !answered.has(call.id) && <Result message={message} call={call} />}
        </li>
      ))}
    </ul>
  );
}

function Result({ message, call }: { message: Message; call: ToolCall }) {
  const text = useSignal("");
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault();
        void answerCall(message, call.id, text.value);
      }}
    >
      <input
        class="grow"
        aria-label={t("resultOf", { name: call.name })}
        placeholder={t("resultOf", { name: call.name })}
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
      />
      <button type="submit">{t("send")}</button>
    </form>
  );
}

/** Arguments with line breaks, once they are whole. */
function readable(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
