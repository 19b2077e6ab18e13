// The messages of the path that is shown. It follows an answer that grows, until somebody scrolls up.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { serverSettings } from "../api";
import { t } from "../i18n";
import { MessageView } from "./MessageView";
import { current, grown, shown } from "./state";

const NEAR = 80; // pixels from the end

export function Thread() {
  const element = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const id = current.value?.id;
  const count = shown.value.length;
  useLayoutEffect(() => {
    follows.current = true;
    toEnd(element.current);
  }, [id, count]);
  useEffect(
    () =>
      grown.subscribe(() => {
        if (follows.current) requestAnimationFrame(() => toEnd(element.current));
      }),
    [],
  );
  return (
    <div
      class="thread"
      ref={element}
      tabIndex={0}
      role="region"
      aria-label={t("messages")}
      onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) =>
        (follows.current = scrollHeight - scrollTop - clientHeight < NEAR)
      }
    >
      {count === 0 ? (
        <div class="welcome">
          <h2>{t("welcome")}</h2>
          <p>{serverSettings.value ? t("welcomeModel", { model: serverSettings.value.models[0] ?? "" }) : t("connecting")}</p>
        </div>
      ) : (
        <ol class="messages">
          {shown.value.map((one) => (
            <MessageView key={one.id} message={one} />
          ))}
        </ol>
      )}
    </div>
  );
}

function toEnd(element: HTMLElement | null): void {
  if (element) element.scrollTop = element.scrollHeight;
}
