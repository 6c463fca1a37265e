/**
 * Charts as plain SVG, which needs no script. The drawing stretches with the page and its lines keep their width; labels are HTML, so that
 * they keep their size on a phone.
 */
import { escaped, shortNumber } from "./html.js";

export interface Series {
  name: string;
  /** One per x; NaN leaves a gap. */
  values: number[];
  /** Which of the page's colours, from 1. */
  color: number;
  /** A thin line behind the others. */
  faint?: boolean;
}

export interface Band {
  name: string;
  low: number[];
  high: number[];
  color: number;
}

export interface ChartOptions {
  title: string;
  /** What is on the vertical axis, and how to read it. */
  note?: string;
  x: number[];
  xName: string;
  series: Series[];
  bands?: Band[];
  /** The axis starts here or lower. */
  least?: number;
  /** Areas on top of each other in place of lines. */
  stacked?: boolean;
  /** Marks every point; for a few of them. */
  points?: boolean;
}

// The drawing's own units; the page stretches them.
const WIDTH = 1000;
const HEIGHT = 400;
/** More points than a screen has columns are averaged away. */
const MOST_POINTS = 800;

/** About `count` round numbers from `low` to `high`. */
export function niceTicks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= rough) ?? 10);
  const ticks: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Averages of consecutive values, so that at most MOST_POINTS are left. */
export function thinned(values: number[]): number[] {
  const group = Math.ceil(values.length / MOST_POINTS);
  if (group <= 1) return values;
  return Array.from({ length: Math.ceil(values.length / group) }, (_, i) => {
    const part = values.slice(i * group, (i + 1) * group);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

function thinnedChart(options: ChartOptions): ChartOptions {
  return {
    ...options,
    x: thinned(options.x),
    series: options.series.map((entry) => ({ ...entry, values: thinned(entry.values) })),
    bands: (options.bands ?? []).map((band) => ({
      ...band,
      low: thinned(band.low),
      high: thinned(band.high),
    })),
  };
}

/** What lies below and above each series: zero and itself, or the sum of those before it. */
function areas(series: Series[]): { low: number[]; high: number[] }[] {
  let sum = series[0]?.values.map(() => 0) ?? [];
  return series.map(({ values }) => {
    const low = sum;
    sum = sum.map((value, i) => value + (values[i] ?? 0));
    return { low, high: sum };
  });
}

interface Scale {
  low: number;
  high: number;
}

function rangeOf(values: number[], least?: number): Scale {
  const finite = values.filter(Number.isFinite);
  let low = finite.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  let high = finite.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  if (finite.length === 0) [low, high] = [0, 1];
  if (least !== undefined) low = Math.min(low, least);
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return { low: least !== undefined && low === least ? low : low - room, high: high + room };
}

const share = ({ low, high }: Scale, value: number): number =>
  high > low ? (value - low) / (high - low) : 0.5;
const round = (value: number): number => Math.round(value * 10) / 10;

class Drawing {
  readonly x: Scale;
  readonly y: Scale;
  constructor(x: Scale, y: Scale) {
    this.x = x;
    this.y = y;
  }
  #point(x: number, y: number): string {
    return `${round(share(this.x, x) * WIDTH)} ${round((1 - share(this.y, y)) * HEIGHT)}`;
  }
  line(x: number[], values: number[]): string {
    let path = "";
    let pen = false;
    values.forEach((value, i) => {
      if (Number.isFinite(value)) path += `${pen ? "L" : "M"}${this.#point(x[i]!, value)}`;
      pen = Number.isFinite(value);
    });
    return path;
  }
  area(x: number[], low: number[], high: number[]): string {
    const kept = x.map((_, i) => i).filter((i) => Number.isFinite(low[i]) && Number.isFinite(high[i]));
    if (kept.length === 0) return "";
    const up = kept.map((i) => this.#point(x[i]!, high[i]!));
    const down = kept.reverse().map((i) => this.#point(x[i]!, low[i]!));
    return `M${[...up, ...down].join("L")}Z`;
  }
  /** Zero-length strokes with round ends: dots that do not stretch. */
  dots(x: number[], values: number[]): string {
    return values
      .map((value, i) => (Number.isFinite(value) ? `M${this.#point(x[i]!, value)}h0` : ""))
      .join("");
  }
}

function shapes(options: ChartOptions, drawing: Drawing): string {
  const { x, series, bands = [], stacked = false } = options;
  const parts = bands.map(
    ({ low, high, color }) => `<path class="band c${color}" d="${drawing.area(x, low, high)}"/>`,
  );
  if (stacked) {
    areas(series).forEach(({ low, high }, i) => {
      parts.push(`<path class="area c${series[i]!.color}" d="${drawing.area(x, low, high)}"/>`);
    });
    return parts.join("");
  }
  for (const { values, color, faint } of series) {
    parts.push(`<path class="line c${color}${faint ? " faint" : ""}" d="${drawing.line(x, values)}"/>`);
    if (options.points || x.length === 1)
      parts.push(`<path class="dots c${color}" d="${drawing.dots(x, values)}"/>`);
  }
  return parts.join("");
}

const percent = (value: number): string => `${round(value * 100)}%`;

function axes(drawing: Drawing, wholeX: boolean): { grid: string; labels: string } {
  const y = niceTicks(drawing.y.low, drawing.y.high, 4);
  const x = niceTicks(drawing.x.low, drawing.x.high, 5).filter((tick) => !wholeX || Number.isInteger(tick));
  const grid = y.map((tick) => {
    const height = round((1 - share(drawing.y, tick)) * HEIGHT);
    return `<path class="grid" d="M0 ${height}H${WIDTH}"/>`;
  });
  const yLabels = y.map(
    (tick) =>
      `<span class="y" style="top:${percent(1 - share(drawing.y, tick))}">${shortNumber(tick)}</span>`,
  );
  const xLabels = x.map(
    (tick) => `<span class="x" style="left:${percent(share(drawing.x, tick))}">${shortNumber(tick)}</span>`,
  );
  return { grid: grid.join(""), labels: [...yLabels, ...xLabels].join("") };
}

function legend({ series, bands = [], stacked }: ChartOptions): string {
  const lines = series.map(({ name, color, faint }) => {
    const kind = stacked ? "area" : faint ? "line faint" : "line";
    return `<li><i class="key ${kind} c${color}"></i>${escaped(name)}</li>`;
  });
  const areas = bands.map(({ name, color }) => `<li><i class="key band c${color}"></i>${escaped(name)}</li>`);
  return `<ul class="legend">${[...lines, ...areas].join("")}</ul>`;
}

const digits = (values: number[]): (number | null)[] =>
  values.map((value) => (Number.isFinite(value) ? Number(value.toPrecision(5)) : null));

/** What the page's script reads to tell the values under the pointer. */
function readout({ x, xName, series, bands = [] }: ChartOptions): string {
  const lines = series.map(({ name, values, color }) => ({ name, color, values: digits(values) }));
  const ranges = bands.map(({ name, low, high, color }) => ({
    name,
    color,
    values: digits(low),
    high: digits(high),
  }));
  return escaped(JSON.stringify({ x: digits(x), xName, lines: [...lines, ...ranges] }));
}

/** A chart as a `<figure>`; empty when there is nothing to draw. */
export function chart(given: ChartOptions): string {
  if (given.x.length === 0 || given.series.length === 0) return "";
  const options = thinnedChart(given);
  const { x, series, bands = [], stacked = false } = options;
  const values = stacked
    ? areas(series).flatMap(({ high }) => high)
    : [...series.map((entry) => entry.values), ...bands.flatMap(({ low, high }) => [low, high])].flat();
  const drawing = new Drawing(
    { low: x[0]!, high: x.at(-1)! },
    rangeOf(values, stacked ? Math.min(0, options.least ?? 0) : options.least),
  );
  const { grid, labels } = axes(drawing, x.every(Number.isInteger));
  const note = options.note ? `<p class="note">${escaped(options.note)}</p>` : "";
  const described = `${options.title} by ${options.xName}: ${series.map((entry) => entry.name).join(", ")}`;
  return `<figure class="chart"><figcaption><h3>${escaped(options.title)}</h3>${note}</figcaption>
<div class="plot" data-chart="${readout(options)}"><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="${escaped(described)}">${grid}${shapes(options, drawing)}</svg>${labels}</div>
<p class="xname">${escaped(options.xName)}</p>${series.length + bands.length > 1 ? legend(options) : ""}</figure>`;
}
