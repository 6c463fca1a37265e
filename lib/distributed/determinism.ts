/** What can make two runs differ, what each determinism level does about it, and what is then promised. `danceflux doctor --explain determinism` */
import type { BackendReport } from "../native.js";
import type { Determinism } from "../options.js";
import { COLLECTIVE_OPTIONS, DETERMINISM_ASKS, type EngineFamily } from "./options.js";

export const LEVELS: readonly Determinism[] = ["off", "run-to-run", "strict"];

type PerLevel = Readonly<Record<Determinism, string>>;

export interface DeterminismRow {
  /** Where randomness or another order could come in. */
  source: string;
  /** Its state under each level. */
  levels: PerLevel;
}

const always = (text: string): PerLevel => ({ off: text, "run-to-run": text, strict: text });

/** `HCCL_DETERMINISTIC=strict, ...`: what a level sets for a library. */
function asked(family: EngineFamily, level: Determinism): string {
  const entries = Object.entries(DETERMINISM_ASKS[family][level]);
  const said = entries.map(([name, value]) => {
    const row = COLLECTIVE_OPTIONS[family].find((each) => each.name === name)!;
    return `${row.variable}=${row.format(value)}`;
  });
  return said.join(" ");
}

function vendor(family: EngineFamily, free: string): PerLevel {
  const ordered = "; sums in one fixed tree over ranks";
  return {
    off: free,
    "run-to-run": asked(family, "run-to-run"),
    strict: `${asked(family, "strict")}${ordered}`,
  };
}

/** All sources. What a backend's kernels do is the option `determinism` of its device. */
export const DETERMINISM_TABLE: readonly DeterminismRow[] = [
  {
    source: "noise",
    levels: always("keyed by seed, iteration, prompt, sample, step: the same bits everywhere"),
  },
  { source: "data order", levels: always("keyed by seed and epoch; no rank, batch or resume changes it") },
  { source: "timestep permutation", levels: always("keyed by seed, iteration, prompt, sample") },
  { source: "adapters' first weights", levels: always("keyed by seed and name of the parameter") },
  {
    source: "reward modules",
    levels: always(
      "Math.random is the system's unless seedAll was called; scorers elsewhere answer for themselves",
    ),
  },
  { source: "kernels, cpu", levels: always("one fixed order of sums per row") },
  {
    source: "kernels, cuda and ascend",
    levels: {
      off: "whatever is fastest; atomics allowed",
      "run-to-run": "deterministic algorithms",
      strict: "deterministic algorithms, none that looks at the batch",
    },
  },
  {
    source: "products, ascend",
    levels: always(
      "CLOSE_MATMUL_K_SHIFT=1 unless it is set: a row's sum starts where it always does, wherever in the batch it stands",
    ),
  },
  { source: "threads, cpu", levels: always("work is cut the same way for any number of threads") },
  {
    source: "batch size",
    levels: {
      off: "cpu: no influence; others: may change the last bits",
      "run-to-run": "cpu: no influence; others: may change the last bits",
      strict: "no influence on a row's bits",
    },
  },
  {
    source: "collectives, shared-memory",
    levels: { off: "fixed order", "run-to-run": "fixed order", strict: "fixed tree over ranks" },
  },
  {
    source: "collectives, gloo",
    levels: { off: "fixed order", "run-to-run": "fixed order", strict: "fixed tree over ranks" },
  },
  {
    source: "collectives, nccl",
    levels: vendor("nccl", "algorithm by size and topology; NVLS differs call to call"),
  },
  { source: "collectives, hccl", levels: vendor("hccl", "algorithm by size and topology") },
];

export interface DeterminismGuarantee {
  backend: string;
  ready: boolean;
  levels: PerLevel;
}

const REPEATS = "the same program on the same devices gives the same bits";
const RATIO = `${REPEATS}; the first policy ratio is exactly 1 at any batch`;

const SAME_BATCH = `${REPEATS}; this CANN promises nothing of a row's batch (9 does): keep the batches of rollout and update equal`;

/** Only CANN 9 and later have a level for it; the plugin's message begins with the version. */
const isBatchConsistent = (name: string, message: string): boolean =>
  name !== "ascend" || Number(/^CANN (\d+)\./.exec(message)?.[1] ?? 0) >= 9;

/** What holds on each backend that was found. */
export function guarantees(backends: readonly BackendReport[]): DeterminismGuarantee[] {
  return backends
    .filter(({ collectives }) => !collectives)
    .map(({ name, state, message }) => {
      const ready = state === "READY";
      if (!ready) return { backend: name, ready, levels: always(`not usable here: ${message}`) };
      if (name === "cpu") return { backend: name, ready, levels: always(RATIO) };
      const known = name === "cuda" || name === "ascend";
      if (!known) return { backend: name, ready, levels: always("what the plugin says of itself") };
      const strict = isBatchConsistent(name, message) ? RATIO : SAME_BATCH;
      return { backend: name, ready, levels: { off: "none", "run-to-run": REPEATS, strict } };
    });
}

/** The table for people: a paragraph per source, equal levels together. */
export function explainDeterminism(found: readonly DeterminismGuarantee[]): string {
  const lines = (title: string, levels: PerLevel) => {
    const groups = new Map<string, Determinism[]>();
    for (const level of LEVELS) groups.set(levels[level], [...(groups.get(levels[level]) ?? []), level]);
    return [...groups].map(([text, same], index) => {
      const which = same.length === LEVELS.length ? "any level" : same.join(", ");
      return `${(index === 0 ? title : "").padEnd(27)} ${which.padEnd(16)} ${text}`;
    });
  };
  const heading = `${"source".padEnd(27)} ${"determinism".padEnd(16)} state`;
  const promised = `${"backend".padEnd(27)} ${"determinism".padEnd(16)} what holds`;
  return [
    heading,
    ...DETERMINISM_TABLE.flatMap(({ source, levels }) => lines(source, levels)),
    "",
    promised,
    ...found.flatMap(({ backend, levels }) => lines(backend, levels)),
  ].join("\n");
}
