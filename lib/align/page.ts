/** The parts of an alignment page: verdict, set-up, tree, tables, pictures. One file that needs nothing else. */
import { createHash } from "node:crypto";
import { encodePngSync, type Picture, readPicture } from "../image/index.js";
import { escaped, shortNumber } from "../report/html.js";
import { SCRIPT, STYLE } from "../report/style.js";
import { shrunk } from "../report/thumbnail.js";
import { version } from "../version.js";
import type { Finding, Status } from "./compare.js";
import type { HeaderDifference } from "./compare_headers.js";
import type { TensorDistance } from "./compare_tensors.js";
import { ALIGN_SCRIPT, ALIGN_STYLE } from "./page_style.js";
import { differenceMap, type PicturePair } from "./picture_pairs.js";
import { short } from "./verdict.js";

export interface Page {
  title: string;
  /** Who is compared with whom. */
  subtitle: string;
  aligned: boolean;
  sentence: string;
  sections: string[];
}

const hash = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

export function alignPage({ title, subtitle, aligned, sentence, sections }: Page): string {
  const script = SCRIPT + ALIGN_SCRIPT;
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src ${hash(script)}; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${escaped(title)} \u2013 danceflux</title><link rel="icon" href="data:,"><style>${STYLE}${ALIGN_STYLE}</style></head>
<body><main><header><h1>${escaped(title)}</h1><p class="soft">${escaped(subtitle)}</p></header>
<div class="verdict${aligned ? "" : " no"}" role="status"><b>${aligned ? "\u2713" : "\u2717"}</b><span>${escaped(sentence)}</span></div>
${sections.filter((section) => section !== "").join("\n")}
<footer>danceflux ${escaped(version())}</footer></main><script>${script}</script></body></html>
`;
}

const scientific = (value: number): string => (Number.isNaN(value) ? "-" : short(value));

export function differencesSection(differences: readonly HeaderDifference[]): string {
  if (differences.length === 0) return "";
  const row = ({ name, a, b, kind }: HeaderDifference) =>
    `<tr><th>${escaped(name)}</th><td class="value">${escaped(a.slice(0, 200))}</td><td class="value">${escaped(b.slice(0, 200))}</td><td>${kind === "setup" ? '<span class="down">computes something else</span>' : "the sides themselves"}</td></tr>`;
  return `<section><h2>Set up differently</h2><div class="scroll"><table><tr><th>what</th><th>A</th><th>B</th><th></th></tr>${differences.map(row).join("")}</table></div></section>`;
}

export function warningsSection(warnings: readonly string[]): string {
  const shown = warnings.slice(0, 12).map((warning) => `<p class="notice">${escaped(warning)}</p>`);
  const more = warnings.length > 12 ? `<p class="soft gap">and ${warnings.length - 12} more</p>` : "";
  return shown.join("") + more;
}

// ---- the tree -----------------------------------------------------------------------------------------------

const RANK: Readonly<Record<Status, number>> = { equal: 0, agrees: 1, follows: 2, unknown: 3, origin: 4 };
const WORDS: Readonly<Record<Status, string>> = {
  equal: "the same bits",
  agrees: "within tolerance",
  follows: "beyond, but handed down",
  unknown: "checksums differ",
  origin: "begins to differ here",
};

interface Node {
  name: string;
  children: Map<string, Node>;
  status: Status;
  error: number;
  count: number;
  first: boolean;
}

const node = (name: string): Node => ({
  name,
  children: new Map(),
  status: "equal",
  error: 0,
  count: 0,
  first: false,
});

function pathOf({ record }: Finding): string[] {
  const stages = record.stage.split("/");
  const inside =
    record.block && record.name !== record.block ? record.name.slice(record.block.length + 1) : "";
  const names = record.block ? [record.block, ...(inside ? [inside] : [])] : [record.name];
  return [...stages, ...names.filter((name) => name !== "")];
}

function treeOf(findings: readonly Finding[], first?: Finding): Node {
  const root = node("");
  for (const finding of findings) {
    let at = root;
    for (const name of ["", ...pathOf(finding)]) {
      if (name !== "") {
        const child = at.children.get(name) ?? node(name);
        at.children.set(name, child);
        at = child;
      }
      at.count++;
      at.error = Math.max(at.error, finding.error);
      if (RANK[finding.status] > RANK[at.status]) at.status = finding.status;
      at.first ||= finding === first;
    }
  }
  return root;
}

const LEAVES = 4000;

function treeHtml(at: Node, leaves: boolean): string {
  const { name, status, error, first, count, children } = at;
  const text = `<i class="dot ${status}"></i>${escaped(name)}<span class="error">${scientific(error)}</span>`;
  if (children.size === 0)
    return `<div class="leaf"><span${first ? ' class="first"' : ""}>${text}${first ? '<span class="mark">first divergence</span>' : ""}</span></div>`;
  // Where nothing is wrong a large tree tells its sum only.
  const inside =
    leaves || first || RANK[status] > 1
      ? [...children.values()].map((child) => treeHtml(child, leaves)).join("")
      : "";
  const own = first && ![...children.values()].some((child) => child.first);
  const marked = own ? '<span class="mark">first divergence</span>' : "";
  return `<details${first ? " open" : ""}><summary>${text}<span class="error">${count} tensors</span>${marked}</summary>${inside}</details>`;
}

export function treeSection(findings: readonly Finding[], first?: Finding): string {
  if (findings.length === 0) return "";
  const root = treeOf(findings, first);
  const leaves = findings.length <= LEAVES;
  const keys = (Object.keys(RANK) as Status[]).filter((status) =>
    findings.some((each) => each.status === status),
  );
  const legend = keys.map((status) => `<li><i class="dot ${status}"></i>${WORDS[status]}</li>`).join("");
  const body = [...root.children.values()].map((child) => treeHtml(child, leaves)).join("");
  return `<section><h2>Stages</h2><p class="soft gap">In the order of computation, each with its largest relative error.</p><ul class="key-list">${legend}</ul><div class="tree">${body}</div></section>`;
}

// ---- tables -------------------------------------------------------------------------------------------------

const number = (value: number | undefined, text: string): string =>
  value === undefined
    ? '<td class="number" data-value="-1">-</td>'
    : `<td class="number" data-value="${Number.isFinite(value) ? value : value > 0 ? 1e308 : -1}">${text}</td>`;

const TABLE_ROWS = 300;

const percentCell = (share: number | undefined): string =>
  number(share, `${(100 * (share ?? 0)).toFixed(1)} %`);
const scientificCell = (value: number | undefined): string => number(value, scientific(value ?? 0));

/** What a bucket of the histogram holds: 0, 1, 2, 3-4, 5-8, ... units in the last place. */
function bucketName(bucket: number, last: number): string {
  if (bucket === last) return "NaN or infinity on one side";
  if (bucket <= 2) return `${bucket} ulp`;
  return bucket === last - 1 ? "more ulp" : `${2 ** (bucket - 2) + 1} to ${2 ** (bucket - 1)} ulp`;
}

/** The histogram as bars; a tenth of the elements is a bar of five sixths, a millionth still shows. */
function histogramCell(distance: TensorDistance | undefined): string {
  const all = distance?.ulps ?? [];
  const total = all.reduce((sum, count) => sum + count, 0);
  if (total === 0) return number(undefined, "-");
  const furthest = all.findLastIndex((count) => count > 0);
  const bars = all.map((count, i) => {
    if (count === 0) return "";
    const height = Math.max(1, Math.round(2.4 * (6 + Math.log10(count / total)))).toFixed(0);
    return `<rect x="${3 * i}" y="${15 - Number(height)}" width="2" height="${height}"/>`;
  });
  const most = all.indexOf(Math.max(...all));
  const told = `most: ${bucketName(most, all.length - 1)}; furthest: ${bucketName(furthest, all.length - 1)}`;
  return number(
    furthest,
    `<svg class="ulps" viewBox="0 0 78 15" width="78" height="15" role="img" aria-label="${told}"><title>${told}</title>${bars.join("")}</svg>`,
  );
}

const COLUMNS: readonly { name: string; left?: boolean; cell: (finding: Finding) => string }[] = [
  { name: "#", cell: ({ order }) => number(order, String(order)) },
  {
    name: "verdict",
    left: true,
    cell: ({ status }) => `<td><i class="dot ${status}"></i>${status}</td>`,
  },
  {
    name: "tensor",
    left: true,
    cell: ({ record: { stage, name, role } }) =>
      `<td class="name">${escaped(stage)}<br>${escaped(name)}${role === "output" ? "" : ` <span class="soft">${role}</span>`}</td>`,
  },
  { name: "op", left: true, cell: ({ record }) => `<td>${escaped(record.op)}</td>` },
  {
    name: "relative error",
    cell: ({ error, estimated }) => number(error, `${estimated ? "~" : ""}${scientific(error)}`),
  },
  { name: "cosine", cell: ({ distance }) => number(distance?.cosine, distance?.cosine.toFixed(6) ?? "-") },
  { name: "max abs", cell: ({ distance }) => scientificCell(distance?.maxAbsolute) },
  { name: "max rel", cell: ({ distance }) => scientificCell(distance?.maxRelative) },
  { name: "< 0.1 %", cell: ({ distance }) => percentCell(distance?.oneThousandth) },
  { name: "< 0.5 %", cell: ({ distance }) => percentCell(distance?.fiveThousandths) },
  { name: "Euclid", cell: ({ distance }) => scientificCell(distance?.euclidean) },
  { name: "ulps", cell: ({ distance }) => histogramCell(distance) },
  { name: "why", left: true, cell: ({ why }) => `<td class="why">${escaped(why)}</td>` },
];

const findingRow = (finding: Finding): string =>
  `<tr>${COLUMNS.map(({ cell }) => cell(finding)).join("")}</tr>`;

/** The findings that matter most, in order: what differs, then the largest errors. */
export function findingsSection(findings: readonly Finding[]): string {
  const worst = [...findings]
    .sort((x, y) => RANK[y.status] - RANK[x.status] || y.error - x.error)
    .slice(0, TABLE_ROWS)
    .sort((x, y) => x.order - y.order);
  if (worst.length === 0) return "";
  const head = COLUMNS.map(
    ({ name, left }) => `<th${left ? "" : ' class="number"'}>${escaped(name)}</th>`,
  ).join("");
  const cut =
    findings.length > worst.length ? `The ${worst.length} worst of ${findings.length} tensors. ` : "";
  return `<section><h2>Tensors</h2><p class="soft gap">${cut}Click a column's head to sort; ~ is estimated from statistics.</p><div class="scroll"><table class="sortable"><thead><tr>${head}</tr></thead><tbody>${worst.map(findingRow).join("")}</tbody></table></div></section>`;
}

export interface Column {
  name: string;
  /** Text left, numbers right. */
  number?: boolean;
}

/** A table that sorts; a cell is a text, or a number with its text. */
export function tableSection(
  title: string,
  columns: Column[],
  rows: (string | [number, string])[][],
): string {
  const head = columns.map(
    ({ name, number: right }) => `<th${right ? ' class="number"' : ""}>${escaped(name)}</th>`,
  );
  const cells = rows.map(
    (row) =>
      `<tr>${row.map((cell) => (typeof cell === "string" ? `<td>${escaped(cell)}</td>` : number(...cell))).join("")}</tr>`,
  );
  return `<section><h2>${escaped(title)}</h2><div class="scroll"><table class="sortable"><thead><tr>${head.join("")}</tr></thead><tbody>${cells.join("")}</tbody></table></div></section>`;
}

// ---- pictures -----------------------------------------------------------------------------------------------

function image(picture: Picture, alt: string): string {
  const small = shrunk(picture);
  const uri = `data:image/png;base64,${Buffer.from(encodePngSync(small)).toString("base64")}`;
  const sharp = Math.max(small.width, small.height) <= 160 ? ' class="small"' : "";
  return `<img${sharp} src="${uri}" width="${small.width}" height="${small.height}" alt="${escaped(alt)}">`;
}

async function pictureCard(pair: PicturePair, caption: string): Promise<string> {
  const [a, b] = await Promise.all([readPicture(pair.a), readPicture(pair.b)]);
  const same = a.width === b.width && a.height === b.height;
  const slide = `<div><span>A | B, pull</span><div class="slide">${image(a, `A: ${caption}`)}${image(b, `B: ${caption}`)}<input type="range" min="0" max="100" value="50" aria-label="A against B"></div></div>`;
  const map = same
    ? `<div><span>difference \u00d7 8</span>${image(differenceMap(a, b), `difference: ${caption}`)}</div>`
    : "";
  const db = Number.isFinite(pair.psnr) ? `${pair.psnr.toFixed(1)} dB` : "equal";
  const numbers = `PSNR ${db} \u00b7 SSIM ${pair.ssim.toFixed(3)} \u00b7 seams ${shortNumber(pair.check.seams, 3)} \u00b7 grid ${shortNumber(pair.check.grid, 3)} \u00b7 flat ${Math.round(100 * pair.check.dead)} % \u00b7 saturated ${Math.round(100 * pair.check.saturated)} % \u00b7 colours ${shortNumber(pair.check.colourDistance, 2)}`;
  const complaints = pair.warnings.map((warning) => `<p class="complaint">${escaped(warning)}</p>`).join("");
  return `<figure class="card${pair.differs ? " off" : ""}"><figcaption>${escaped(caption)}</figcaption><div class="both">${slide}${map}</div><p class="numbers">${numbers}</p>${complaints}</figure>`;
}

/** Cards of picture pairs; those that differ come first when not all can be shown. */
export async function picturesSection(
  title: string,
  pairs: readonly PicturePair[],
  captionOf: (pair: PicturePair) => string = ({ file }) => file,
  most = 24,
): Promise<string> {
  if (pairs.length === 0) return "";
  const shown = [...pairs].sort((x, y) => Number(y.differs) - Number(x.differs)).slice(0, most);
  const cards: string[] = [];
  for (const pair of shown) cards.push(await pictureCard(pair, captionOf(pair)));
  const cut =
    shown.length < pairs.length ? ` ${shown.length} of ${pairs.length}, those that differ first.` : "";
  return `<section><h2>${escaped(title)}</h2><p class="soft gap">A over B: pull the line to compare.${cut}</p><div class="gallery">${cards.join("\n")}</div></section>`;
}
