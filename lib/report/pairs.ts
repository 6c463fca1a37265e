/** Pictures of the first and the last evaluation side by side. */
import { join } from "node:path";
import type { SavedPicture } from "../grpo/evaluation.js";
import { escaped, shortNumber } from "./html.js";
import type { EvaluationPictures, Run } from "./run.js";
import { type Thumbnail, thumbnail } from "./thumbnail.js";

/** Pairs that a page shows. */
const MOST_PAIRS = 24;
/** Pictures up to this side are shown with sharp pixels. */
const SMALL_SIDE = 160;

/** At most `most` entries, evenly spread. */
export function spreadOver<T>(entries: readonly T[], most: number): T[] {
  if (entries.length <= most) return [...entries];
  return Array.from({ length: most }, (_, i) => entries[Math.floor((i * entries.length) / most)]!);
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
export async function pictureSection({ pictures }: Run): Promise<string> {
  const first = pictures[0];
  const last = pictures.at(-1);
  if (!first || !last || first === last) return "";
  const chosen = spreadOver(first.pictures, MOST_PAIRS);
  const pairs: string[] = [];
  for (const before of chosen) pairs.push(await pair(first, last, before));
  const shown = pairs.filter((entry) => entry !== "");
  if (shown.length === 0) return "";
  return `<section><h2>Before and after</h2><p class="soft gap">Held-out prompts, the same noise before and after; ${shown.length} of ${first.pictures.length} saved pictures.</p>
<div class="pairs">${shown.join("\n")}</div></section>`;
}
