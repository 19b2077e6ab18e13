// A chart of the latest samples, drawn as one line for each series, with its latest value in words.
import { useSignal } from "@preact/signals";
import { language } from "../i18n";
import type { Sample } from "./feed";

const WIDTH = 600;
const HEIGHT = 120;
const GAP_SECONDS = 10; // without a sample, and the line breaks

export interface Series {
  field: string;
  text: string;
}

interface Chart {
  title: string;
  series: Series[];
  samples: Sample[];
  /** How a value is written. */
  write: (value: number) => string;
  /** The end of the scale; by default as far as the values go. */
  most?: number;
}

export function Chart({ title, series, samples, write, most }: Chart) {
  const looked = useSignal<number | null>(null);
  const shown = samples[looked.value ?? samples.length - 1];
  const values = samples.flatMap((one) => series.map(({ field }) => one[field] ?? 0));
  const top = most ?? roundUp(Math.max(...values, 0));
  const begin = samples[0]?.["time"] ?? 0;
  const span = Math.max((samples.at(-1)?.["time"] ?? 0) - begin, 1);
  const x = (one: Sample): number => (((one["time"] ?? 0) - begin) / span) * WIDTH;
  const time = shown?.["time"] ? new Date(shown["time"] * 1000).toLocaleTimeString(language.value) : "";
  return (
    <figure class="chart">
      <figcaption>
        <h2>{title}</h2>
        <ul>
          {series.map(({ field, text }, index) => (
            <li>
              <span class={`key series-${index + 1}`} /> {text} <b>{valueOf(shown, field, write)}</b>
            </li>
          ))}
        </ul>
        <time>{looked.value === null ? "" : time}</time>
      </figcaption>
      <div class="plot" aria-hidden="true">
        <svg
          viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
          preserveAspectRatio="none"
          onPointerMove={(event) => {
            const { left, width } = event.currentTarget.getBoundingClientRect();
            looked.value = nearest(samples, begin + ((event.clientX - left) / width) * span);
          }}
          onPointerLeave={() => (looked.value = null)}
        >
          <line class="grid-line" x1="0" x2={WIDTH} y1={HEIGHT / 2} y2={HEIGHT / 2} />
          {series.map(({ field }, index) => (
            <path class={`series-${index + 1}`} d={line(samples, field, x, top)} />
          ))}
          {looked.value !== null && shown && <line class="look" x1={x(shown)} x2={x(shown)} y1="0" y2={HEIGHT} />}
        </svg>
        <div class="scale">
          <span>{write(top)}</span>
          <span>0</span>
        </div>
      </div>
    </figure>
  );
}

function valueOf(sample: Sample | undefined, field: string, write: (value: number) => string): string {
  const value = sample?.[field];
  return value === null || value === undefined ? "–" : write(value);
}

function line(samples: Sample[], field: string, x: (one: Sample) => number, top: number): string {
  let path = "";
  let before: number | null = null;
  for (const one of samples) {
    const value = one[field];
    const time = one["time"] ?? 0;
    if (value === null || value === undefined) {
      before = null;
      continue;
    }
    const joins = before !== null && time - before < GAP_SECONDS;
    path += `${joins ? "L" : "M"}${x(one).toFixed(1)} ${(HEIGHT - (value / top) * (HEIGHT - 4) - 2).toFixed(1)}`;
    before = time;
  }
  return path;
}

function nearest(samples: Sample[], time: number): number | null {
  let best: number | null = null;
  samples.forEach((one, index) => {
    const distance = Math.abs((one["time"] ?? 0) - time);
    if (best === null || distance < Math.abs((samples[best]?.["time"] ?? 0) - time)) best = index;
  });
  return best;
}

/** 1, 2 or 5 times a power of ten, not below the value. */
function roundUp(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? value;
}
