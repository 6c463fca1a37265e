/** `report.html`: a run in one page that needs nothing else, neither files nor network. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { writeAtomically } from "../models/save.js";
import { version } from "../version.js";
import { type ChartGroup, chartGroups, stageColor, usedStages } from "./charts.js";
import { bytes, change, duration, escaped, shortNumber } from "./html.js";
import { pictureSection } from "./pairs.js";
import { type Run, readRun } from "./run.js";
import { SCRIPT, STYLE } from "./style.js";
import { summarize, type TrainSummary } from "./summary.js";

const tile = (value: string, label: string): string =>
  `<div class="tile"><b>${value}</b><small>${label}</small></div>`;

function measuredTiles({ before, after }: TrainSummary): string[] {
  if (!before || !after) return [];
  const names = Object.keys(after).filter((name) => name !== "reward" || Object.keys(after).length === 1);
  return names.map((name) => {
    const [from, to] = [before[name] ?? Number.NaN, after[name]!];
    const direction = to > from ? "up" : to < from ? "down" : "";
    const percent = change(from, to);
    const shift = percent ? ` <span class="${direction}">${percent}</span>` : "";
    return tile(`${shortNumber(from, 3)} \u2192 ${shortNumber(to, 3)}`, `${escaped(name)}${shift}`);
  });
}

/** What the tiles compare. */
function comparison({ evaluations }: Run, { before, measured }: TrainSummary): string {
  if (!before) return "";
  const held = `held-out prompts (${evaluations.at(-1)?.pictures} pictures), before training and at the last evaluation`;
  return `<p class="soft compared">Means on ${measured === "evaluation" ? held : "the first and the last iteration's own pictures"}.</p>`;
}

function tiles(run: Run, summary: TrainSummary): string {
  const last = run.iterations.at(-1);
  const planned = run.config.iterations;
  const done =
    summary.iterations >= planned ? `${summary.iterations}` : `${summary.iterations} of ${planned}`;
  const facts = [tile(done, "iterations"), tile(duration(summary.seconds), "training and evaluation")];
  if (last) {
    const peak = Math.max(...run.iterations.slice(-50).map((line) => line.memory.peak));
    facts.push(tile(bytes(peak), "peak memory of the device"));
  }
  return `<div class="tiles">${[...measuredTiles(summary), ...facts].join("")}</div>${comparison(run, summary)}`;
}

function notices({ iterations }: Run): string {
  const count = (pick: (line: Run["iterations"][number]) => number) =>
    iterations.reduce((sum, line) => sum + (pick(line) || 0), 0);
  const told: [number, string][] = [
    [count((line) => line.skippedUpdates), "updates were skipped because their gradient was not finite"],
    [count((line) => line.rewardFailures), "scores are missing because a reward that is not required failed"],
    [
      count((line) => line.zeroVarianceGroups),
      "groups had the same reward for every picture: nothing was learned from them",
    ],
  ];
  return told
    .filter(([number]) => number > 0)
    .map(([number, what]) => `<p class="notice">${number} ${what}.</p>`)
    .join("");
}

function stageTable({ iterations }: Run): string {
  const stages = usedStages(iterations);
  if (stages.length === 0) return "";
  const total = iterations.reduce((sum, line) => sum + line.seconds.total, 0);
  const rows = stages.map((stage) => {
    const seconds = iterations.reduce((sum, line) => sum + line.seconds[stage], 0);
    const percent = total > 0 ? (100 * seconds) / total : 0;
    const meter = `<i class="meter c${stageColor(stage)}" style="width:${percent.toFixed(1)}%"></i>`;
    const mean = `${shortNumber(seconds / iterations.length)} s`;
    return `<tr><th>${stage}</th><td class="number">${mean}</td><td class="number">${percent.toFixed(1)} %</td><td style="width:50%">${meter}</td></tr>`;
  });
  return `<div class="scroll stages"><table><tr><th>stage</th><th class="number">an iteration</th><th class="number">share</th><th></th></tr>${rows.join("")}</table></div>`;
}

const sections = (run: Run, groups: ChartGroup[]): string =>
  groups
    .map(({ title, charts }) => {
      const table = title === "Time" ? stageTable(run) : "";
      return `<section><h2>${title}</h2><div class="charts">${charts.join("\n")}</div>${table}</section>`;
    })
    .join("\n");

function* options(value: unknown, name = ""): Generator<[string, string]> {
  if (Array.isArray(value) && value.length > 8 && value.every((entry) => typeof entry === "string")) {
    yield [name, `${value.length} entries: ${JSON.stringify(value.slice(0, 3)).slice(1, -1)}, ...`];
  } else if (/\.headers$/.test(name)) {
    // A page is passed around more freely than a run folder.
    yield [name, Object.keys(value as object).join(", ")];
  } else if (value !== null && typeof value === "object" && Object.keys(value).length > 0) {
    for (const [key, entry] of Object.entries(value))
      yield* options(entry, name === "" ? key : `${name}.${key}`);
  } else {
    yield [name, JSON.stringify(value) ?? ""];
  }
}

function configuration({ config }: Run): string {
  const rows = [...options(config)].map(
    ([name, value]) => `<tr><th>${escaped(name)}</th><td class="value">${escaped(value)}</td></tr>`,
  );
  return `<details><summary>Configuration</summary><div class="scroll"><table>${rows.join("")}</table></div></details>`;
}

const sha256 = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

/** The whole page. */
export async function reportHtml(run: Run, device?: string): Promise<string> {
  const summary = summarize(run);
  const name = basename(resolve(run.folder));
  const model = basename(run.config.model.path);
  const where = device ? `${run.config.device.name} (${device})` : run.config.device.name;
  const { sampling, promptsPerIteration, groupSize } = run.config;
  const how = `${promptsPerIteration} \u00d7 ${groupSize} pictures an iteration, ${sampling.width} \u00d7 ${sampling.height} pixels, ${sampling.steps} steps`;
  const { first, rest } = chartGroups(run);
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src ${sha256(SCRIPT)}; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${escaped(name)} \u2013 danceflux</title><link rel="icon" href="data:,"><style>${STYLE}</style></head>
<body><main><header><h1>${escaped(model)}: ${escaped(name)}</h1><p class="soft">${escaped(where)} \u00b7 ${escaped(how)}</p></header>
${tiles(run, summary)}${notices(run)}
${sections(run, first)}
${await pictureSection(run)}
${sections(run, rest)}
${configuration(run)}
<footer>danceflux ${escaped(version())}</footer></main><script>${SCRIPT}</script></body></html>
`;
}

/** What a finished run said about its device. */
async function deviceOf(folder: string): Promise<string | undefined> {
  const text = await readFile(join(folder, "summary.json"), "utf8").catch(() => "{}");
  try {
    const { device } = JSON.parse(text) as Partial<TrainSummary>;
    return typeof device === "string" ? device : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Writes the report of a run folder, finished or not.
 *
 * @param path where to; default `report.html` in the folder.
 * @returns the path. @throws {DanceError} `ERR_FILE` when the folder holds no run.
 */
export async function writeReport(
  folder: string,
  path: string = join(folder, "report.html"),
): Promise<string> {
  const run = await readRun(folder);
  await writeAtomically(path, await reportHtml(run, await deviceOf(folder)));
  return path;
}
