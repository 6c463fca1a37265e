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

/** Two runs that must be the same but for time: where they part, and the median seconds of a rollout, without the first iteration. */
export function compareRuns(plain, graphs) {
  const [one, other] = [plain, graphs].map((path) =>
    readFileSync(path, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
      .filter(({ type }) => type === "iteration"),
  );
  const told = ({ reward, rewards, loss, gradientNorm }) =>
    JSON.stringify({ reward, rewards, loss, gradientNorm });
  const wrong = [];
  if (one.length !== other.length || one.length < 2)
    wrong.push(`expected runs of the same length, got ${one.length} and ${other.length} iterations`);
  const parted = one.findIndex((metrics, i) => other[i] && told(metrics) !== told(other[i]));
  if (parted >= 0) wrong.push(`iteration ${parted + 1} differs`);
  const rollout = (run) =>
    run
      .slice(1)
      .map(({ seconds }) => seconds.rollout)
      .sort((a, b) => a - b)[(run.length - 1) >> 1];
  return { rollouts: { plain: rollout(one), graphs: rollout(other) }, wrong, bad: wrong.length > 0 };
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

/** Rows of the model bench: failed where an output disagreed; what did not fit was not timed and is no failure. */
export function modelVerdict(rows) {
  const wrong = rows
    .filter((row) => row.ours !== null && !row.checked)
    .map(({ name }) => `disagrees: ${name}`);
  const missed = rows.filter((row) => row.ours === null && !/not fit/.test(row.note ?? ""));
  wrong.push(...missed.map(({ name, note }) => `not timed: ${name}${note ? ` (${note})` : ""}`));
  return { rows, wrong, bad: rows.length === 0 || wrong.length > 0 };
}

const CEILING = "ceiling: ";
/** "linear", "attention, forward", "attention, forward and backward"; undefined for what has no ceiling. */
const kindOf = (name) =>
  /^linear \d/.test(name) ? "linear" : /^attention \d+(, .*)$/.exec(name)?.[1].replace(/^/, "attention");

/**
 * The share that a rate has of its ceiling: the best of both sides at a large product or over many tokens, measured in the same run.
 * Undefined where no ceiling was measured.
 */
export function shareOfCeiling(row, rows, others) {
  const kind = kindOf(row.name);
  const best = [...rows, ...others]
    .filter(({ name }) => name.startsWith(CEILING) && kindOf(name.slice(CEILING.length)) === kind)
    .map(({ ours }) => ours);
  return kind && best.length > 0 ? row.ours / Math.max(...best) : undefined;
}

const pair = (values) => (values ? `${number(values.ours)} / ${number(values.theirs)}` : "-");

/** "at most 34 ms: met" */
function aimText({ aim, floor }) {
  if (floor) return `floor ${floor} s`;
  if (!aim) return "-";
  const bound = aim.most === undefined ? `at least ${aim.least}` : `at most ${aim.most}`;
  return `${bound} ${aim.unit}: ${aim.met ? "met" : "NOT MET"}`;
}

/** The model bench, each row beside PyTorch's fastest way. */
export function modelTable(rows) {
  return table(
    [
      ...["model", "ours", "PyTorch", "ours is", "unit"],
      ...["TFLOP/s, ours / PyTorch", "peak GiB, ours / PyTorch", "aim on an H200", "checked", "note"],
    ],
    rows.map((row) => [
      ...[row.name.replace(/^model\//, ""), number(row.ours), number(row.theirs)],
      ...[
        row.ratio ? `${row.ratio.toFixed(2)} x` : "-",
        row.unit,
        pair(row.rate),
        pair(row.peak),
        aimText(row),
      ],
      ...[row.checked ? "yes" : "NO", (row.note ?? "-").replaceAll("|", "/")],
    ]),
  );
}

function table(head, rows) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

const percent = (share) => (share === undefined ? "-" : `${(share * 100).toFixed(0)} %`);

/** Ops, products and attention beside PyTorch, with their share of the ceilings measured in this run. */
function benchTable(rows, others) {
  const shares = rows.map((row) => shareOfCeiling(row, rows, others));
  return table(
    ["bench", "ours", "PyTorch", "ours is", "unit", "of the ceiling", "checked"],
    sideBySide(rows, others).map((row, i) => [
      ...[row.name, number(row.ours), number(row.theirs), row.ratio ? `${row.ratio.toFixed(2)} x` : "-"],
      ...[row.unit, percent(shares[i]), row.checked ? "yes" : "NO"],
    ]),
  );
}

/** Stages that time the rows of another under other options, and what those rows are called. */
const VARIANTS = {
  "bench-own-attention": "own kernels",
  "bench-run-to-run": "determinism run-to-run",
  "bench-off": "determinism off",
};

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
  const graphs = of("graphs");
  if (graphs?.rollouts)
    parts.push(
      `A rollout of the tiny model: ${number(graphs.rollouts.plain)} s, with its steps as CUDA graphs ${number(graphs.rollouts.graphs)} s.`,
    );
  const rows = [
    ...(of("bench-ops")?.rows ?? []),
    ...(of("bench-flux")?.rows ?? []),
    ...Object.entries(VARIANTS).flatMap(([stage, title]) =>
      (of(stage)?.rows ?? []).map((row) => ({ ...row, title: `${row.name}, ${title}` })),
    ),
  ];
  const model = of("bench-model")?.rows ?? [];
  if (model.length > 0) parts.push(modelTable(model));
  if (rows.length > 0) parts.push(benchTable(rows, of("bench-torch")?.rows ?? []));
  for (const stage of stages) {
    if (stage.wrong?.length)
      parts.push(`${stage.name}:\n\n${stage.wrong.map((line) => `- ${line}`).join("\n")}`);
    if (stage.tail) parts.push(`End of ${stage.name}:\n\n\`\`\`\n${stage.tail}\n\`\`\``);
  }
  return `${parts.join("\n\n")}\n`;
}
