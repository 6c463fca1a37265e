// What gpu-check reads from its stages, and the page that it writes.
import { readFileSync } from "node:fs";

/** "12 passed, 1 failed" of the C++ tests, with what failed. */
export function parseTests(text) {
  const last = [...text.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1);
  if (!last) throw new Error('expected a line "N passed, N failed" from the tests, got none');
  const wrong = [...text.matchAll(/^FAILED .*$/gm)].map(([line]) => line);
  return { passed: Number(last[1]), failed: Number(last[2]), wrong, bad: last[1] === "0" || last[2] !== "0" };
}

/** The greatest deviation from 1 of the ratio before a first update, over a run's metrics. */
export function ratioDeviation(path) {
  const lines = readFileSync(path, "utf8").trim().split("\n");
  const deviations = lines
    .map((line) => JSON.parse(line).ratio?.firstUpdateMaxDeviation)
    .filter((value) => value !== undefined);
  if (deviations.length === 0)
    throw new Error(`${path}: expected iterations with ratio.firstUpdateMaxDeviation, got none`);
  const worst = Math.max(...deviations);
  return { iterations: deviations.length, ratioDeviation: worst, bad: worst !== 0 };
}

const number = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : "-");

/** Rows of ours beside PyTorch's of the same name. */
export function sideBySide(ours, theirs) {
  const other = new Map(theirs.map((row) => [row.name, row]));
  return ours.map((row) => {
    const peer = other.get(row.name);
    const ratio = peer ? (row.unit === "ms" ? peer.ours / row.ours : row.ours / peer.ours) : undefined;
    return {
      name: row.title ?? row.name,
      ours: row.ours,
      theirs: peer?.ours,
      ratio,
      unit: row.unit,
      checked: row.checked,
    };
  });
}

function table(head, rows) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

/** The page, in Markdown. */
export function writePage(report) {
  const { gpu, stages } = report;
  const of = (name) => stages.find((stage) => stage.name === name);
  const parts = [
    `# ${gpu.name}, ${report.date}`,
    `danceflux ${report.version} at ${report.commit}; sm_${gpu.capability.replace(".", "")}, ${gpu.memory}, driver ${gpu.driver}, ` +
      `power limit ${gpu.power}; nvcc ${report.nvcc}; ${report.cores} host cores.\n\n    ${report.command}`,
    table(
      ["stage", "shows", "state", "s"],
      stages.map((stage) => [
        stage.name,
        stage.shows,
        stage.state + (stage.why ? `: ${stage.why}` : ""),
        number(stage.seconds),
      ]),
    ),
  ];
  const training = of("training");
  if (training?.iterations)
    parts.push(
      `Ratio before the first update over ${training.iterations} iterations: greatest deviation from 1 is ${training.ratioDeviation}.`,
    );
  const own = of("bench-own-attention")?.rows ?? [];
  const rows = [
    ...(of("bench-ops")?.rows ?? []),
    ...(of("bench-flux")?.rows ?? []),
    ...own.map((row) => ({ ...row, title: `${row.name}, own kernels` })),
  ];
  if (rows.length > 0) {
    parts.push(
      table(
        ["bench", "ours", "PyTorch", "ours is", "unit", "checked"],
        sideBySide(rows, of("bench-torch")?.rows ?? []).map((row) => [
          row.name,
          number(row.ours),
          number(row.theirs),
          row.ratio ? `${row.ratio.toFixed(2)} x` : "-",
          row.unit,
          row.checked ? "yes" : "NO",
        ]),
      ),
    );
  }
  for (const stage of stages) {
    if (stage.wrong?.length)
      parts.push(`${stage.name}:\n\n${stage.wrong.map((line) => `- ${line}`).join("\n")}`);
    if (stage.tail) parts.push(`End of ${stage.name}:\n\n\`\`\`\n${stage.tail}\n\`\`\``);
  }
  return `${parts.join("\n\n")}\n`;
}
