/** Pictures of the first and the last evaluation side by side. */
import { join } from "node:path";
import type { SavedPicture } from "../grpo/evaluation.js";
import { escaped, shortNumber } from "./html.js";
import type { EvaluationPictures, Run } from "./run.js";
import { type Thumbnail, thumbnail } from "./thumbnail.js";

/** Pairs that a page shows: so many bytes are still quick to open. */
const MOST_PAIRS = { small: 48, large: 16 } as const;
/** Pictures up to this side are shown with sharp pixels. */
const SMALL_SIDE = 160;

// Multiplying by this odd number scatters consecutive ones over 32 bits (Knuth's multiplicative hash).
const SCATTER = 2654435761;

/** At most `most` entries, in order, scattered: every so many would show one kind alone where kinds take turns. */
export function scattered<T>(entries: readonly T[], most: number): T[] {
  const places = entries.map((_, i) => i);
  const chosen = places
    .sort((a, b) => (Math.imul(a, SCATTER) >>> 0) - (Math.imul(b, SCATTER) >>> 0))
    .slice(0, most);
  return chosen.sort((a, b) => a - b).map((i) => entries[i]!);
}

function image({ uri, width, height }: Thumbnail, alt: string): string {
  const small = Math.max(width, height) <= SMALL_SIDE ? ' class="small"' : "";
  return `<img${small} src="${uri}" width="${width}" height="${height}" alt="${escaped(alt)}">`;
}

function scoreTable(before: Record<string, number>, after: Record<string, number>): string {
  const rows = Object.entries(after).map(([name, to]) => {
    const from = before[name] ?? Number.NaN;
    const direction = to > from ? "up" : to < from ? "down" : "";
    const cells = `<td>${shortNumber(from)}</td><td class="${direction}">${shortNumber(to)}</td>`;
    return `<tr><th>${escaped(name)}</th>${cells}</tr>`;
  });
  return `<table>${rows.join("")}</table>`;
}

async function pair(
  first: EvaluationPictures,
  last: EvaluationPictures,
  before: SavedPicture,
): Promise<string> {
  const after = last.pictures.find((entry) => entry.file === before.file && entry.prompt === before.prompt);
  const [left, right] = await Promise.all([
    thumbnail(join(first.folder, before.file)),
    after && thumbnail(join(last.folder, after.file)),
  ]);
  if (!left || !right || !after) return "";
  const shown = [
    `<div><span>before</span>${image(left, `before: ${before.prompt}`)}</div>`,
    `<div><span>after ${last.iteration} iterations</span>${image(right, `after: ${before.prompt}`)}</div>`,
  ];
  return `<figure class="pair"><figcaption>${escaped(before.prompt)}</figcaption><div class="two">${shown.join("")}</div>${scoreTable(before.scores, after.scores)}</figure>`;
}

/** The section of pictures; empty when there are none. */
export async function pictureSection({ pictures, config }: Run): Promise<string> {
  const first = pictures[0];
  const last = pictures.at(-1);
  if (!first || !last || first === last) return "";
  const large = Math.max(config.sampling.width, config.sampling.height) > SMALL_SIDE;
  const chosen = scattered(first.pictures, large ? MOST_PAIRS.large : MOST_PAIRS.small);
  const pairs: string[] = [];
  for (const before of chosen) pairs.push(await pair(first, last, before));
  const shown = pairs.filter((entry) => entry !== "");
  if (shown.length === 0) return "";
  return `<section><h2>Before and after</h2><p class="soft gap">Held-out prompts, the same noise before and after; ${shown.length} of ${first.pictures.length} saved pictures.</p>
<div class="pairs">${shown.join("\n")}</div></section>`;
}
