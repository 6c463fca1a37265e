/** Two dumps side by side: what differs, and where it begins. B is what counts as right. */
import { join } from "node:path";
import { type HeaderDifference, headerDifferences } from "./compare_headers.js";
import { compareTensors, relativeError, type TensorDistance } from "./compare_tensors.js";
import type { Dump, DumpRecord } from "./dump.js";
import { type PicturePair, picturePairs } from "./picture_pairs.js";
import { memoryTensor, TensorFile, type TensorSource } from "./tensor_source.js";
import { GROWTH, type Tolerance, toleranceOf } from "./thresholds.js";
import { short, verdictSentence } from "./verdict.js";

/**
 * `equal`: the same bits. `agrees`: within tolerance. `follows`: beyond it, but its inputs were already as far off. `origin`: beyond it,
 * from inputs that agree: something is wrong here. `unknown`: only checksums are known, and they differ.
 */
export type Status = "equal" | "agrees" | "follows" | "origin" | "unknown";

export interface Finding {
  record: DumpRecord;
  other: DumpRecord;
  /** Position in A. */
  order: number;
  status: Status;
  /** |a - b| / |b|; Infinity for other shapes and for NaN or infinity on one side only. */
  error: number;
  /** Estimated from statistics; otherwise measured on all elements. */
  estimated: boolean;
  /** The largest error of what went in, as far as that is known. */
  inherited: number;
  tolerance: Tolerance;
  distance?: TensorDistance;
  /** The verdict in words. */
  why: string;
}

export interface Comparison {
  aligned: boolean;
  /** One sentence. */
  sentence: string;
  a: Dump;
  b: Dump;
  differences: HeaderDifference[];
  findings: Finding[];
  /** Where the two begin to differ: the first origin. */
  first?: Finding;
  /** Names that only one side has. */
  onlyA: string[];
  onlyB: string[];
  pictures: PicturePair[];
  warnings: string[];
}

/** Each record's key: what it is, and which time it comes. */
export function keysOf(records: readonly DumpRecord[]): string[] {
  const seen = new Map<string, number>();
  return records.map(({ stage, name, role, index }) => {
    const key = `${stage}|${name}|${role}|${index}`;
    const times = seen.get(key) ?? 0;
    seen.set(key, times + 1);
    return times === 0 ? key : `${key}|${times}`;
  });
}

/** Opens the files of one dump; a few stay open. */
class Tensors implements AsyncDisposable {
  readonly #folder: string;
  readonly #open = new Map<string, TensorFile>();
  constructor(folder: string) {
    this.#folder = folder;
  }

  async of(record: DumpRecord): Promise<TensorSource | undefined> {
    if (record.values) return memoryTensor(record.values.map((value) => value ?? Number.NaN));
    if (record.file === undefined || record.key === undefined) return undefined;
    let file = this.#open.get(record.file);
    if (!file) {
      file = await TensorFile.open(join(this.#folder, record.file));
      this.#open.set(record.file, file);
      const [oldest] = this.#open;
      if (this.#open.size > 4 && oldest) {
        this.#open.delete(oldest[0]);
        await oldest[1][Symbol.asyncDispose]();
      }
    }
    return file.tensor(record.key);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#open.values()) await file[Symbol.asyncDispose]();
  }
}

const sameNumbers = (a: DumpRecord, b: DumpRecord): boolean =>
  (a.nan ?? 0) === (b.nan ?? 0) && (a.inf ?? 0) === (b.inf ?? 0);

/** The error that two sets of statistics tell of: the projections', or a visible shift of an extreme or of the mean. */
export function estimatedError(a: DumpRecord, b: DumpRecord, floor = 0): number {
  if (!sameNumbers(a, b)) return Number.POSITIVE_INFINITY;
  const norm = Math.max(b.l2 ?? 0, floor);
  const apart = (a.sketch ?? []).map((value, k) => value - (b.sketch?.[k] ?? Number.NaN));
  const squares = apart.reduce((sum, value) => sum + value * value, 0) / Math.max(1, apart.length);
  const rms = norm / Math.sqrt(Math.max(1, b.count));
  const shifts = [
    relativeError(Math.abs((a.l2 ?? 0) - (b.l2 ?? 0)), norm),
    // One element alone tells little of the whole: its share of the norm counts.
    relativeError(Math.abs((a.mean ?? 0) - (b.mean ?? 0)), rms),
  ];
  return Math.max(relativeError(Math.sqrt(squares), norm), ...shifts);
}

interface Measured {
  error: number;
  /** Relative to the tensor's own norm, whatever went in; smaller than this after a sum that cancelled. */
  raw: number;
  estimated: boolean;
  known: boolean;
  distance?: TensorDistance;
}

/** `floor`: the result is held against no smaller norm than this. */
async function measure(
  a: DumpRecord,
  b: DumpRecord,
  left: Tensors,
  right: Tensors,
  floor: number,
): Promise<Measured> {
  if (a.shape.join() !== b.shape.join()) {
    return { error: Number.POSITIVE_INFINITY, raw: Number.NaN, estimated: false, known: true };
  }
  if (a.dtype === b.dtype && a.crc === b.crc) return { error: 0, raw: 0, estimated: false, known: true };
  const [x, y] = [await left.of(a), await right.of(b)];
  if (x && y) {
    const distance = await compareTensors(x, y);
    const error =
      distance.odd > 0
        ? Number.POSITIVE_INFINITY
        : relativeError(distance.euclidean, Math.max(distance.norm, floor));
    return {
      error,
      raw: distance.odd > 0 ? Number.NaN : distance.relative,
      estimated: false,
      known: true,
      distance,
    };
  }
  if (a.l2 === undefined || b.l2 === undefined)
    return { error: Number.POSITIVE_INFINITY, raw: Number.NaN, estimated: true, known: false };
  const raw = sameNumbers(a, b) ? estimatedError(a, b) : Number.NaN;
  return { error: estimatedError(a, b, floor), raw, estimated: true, known: true };
}

function reason(finding: Omit<Finding, "why">): string {
  const { record, other, status, error, tolerance, inherited, estimated } = finding;
  if (status === "equal") return "the same bits";
  if (status === "unknown") return "the checksums differ; record statistics to know by how much";
  if (record.shape.join() !== other.shape.join())
    return `shape [${record.shape}] against [${other.shape}]: nothing to compare`;
  const limit = `${short(tolerance.limit)} is allowed for ${tolerance.family} in ${tolerance.precision}`;
  const how = estimated ? "about " : "";
  if (error === Number.POSITIVE_INFINITY) {
    if (sameNumbers(record, other)) return "something where the other side has only zeros";
    const odd = (entry: DumpRecord) => `${entry.nan ?? "?"} NaN and ${entry.inf ?? "?"} infinite`;
    return `${odd(record)} elements against ${odd(other)}`;
  }
  const told = `relative error ${how}${short(error)}, ${limit}`;
  if (status === "agrees") return told;
  return status === "follows"
    ? `${told}; what went in was off by ${short(inherited)} already`
    : `${told}; what went in ${inherited === 0 ? "is the same" : `agrees to ${short(inherited)}`}`;
}

const SUMS = new Set(["add", "sub", "gated_residual", "reduce"]);

/** What went into a record: its op's inputs where they are known, otherwise all that came before. */
class Lineage {
  readonly #inputs = new Map<string, { error: number; raw: number; norm: number }>();
  readonly #made = new Map<string, Pick<Measured, "error" | "raw">>();
  #before = 0;

  of(record: DumpRecord): number {
    return this.#inputsOf(record)?.error ?? this.#before;
  }

  #inputsOf({ role, stage, name }: DumpRecord) {
    return role === "output" ? this.#inputs.get(`${stage}|${name}`) : undefined;
  }

  /** Sums may cancel: what is left of them is held against what went in. */
  floorOf(record: DumpRecord): number {
    return SUMS.has(record.op) ? (this.#inputsOf(record)?.norm ?? 0) : 0;
  }

  /** The error of an input that an earlier op gave: it stays the same, whatever its norm. */
  made(record: DumpRecord, other: DumpRecord): Pick<Measured, "error" | "raw"> | undefined {
    return record.role === "input" ? this.#made.get(`${record.crc} ${other.crc}`) : undefined;
  }

  /**
   * What is left of a sum that cancelled is rounding, however large beside itself; what is made of it alone is no worse. NaN (something
   * odd) is never excused.
   */
  eased(record: DumpRecord, measured: Measured): Measured {
    const inputs = this.#inputsOf(record);
    const excused = inputs && inputs.raw > inputs.error && measured.raw <= GROWTH * inputs.raw;
    return excused ? { ...measured, error: Math.min(measured.error, inputs.error) } : measured;
  }

  add(record: DumpRecord, other: DumpRecord, { error, raw }: Measured): void {
    if (record.role === "input") {
      const key = `${record.stage}|${record.name}`;
      const before = this.#inputs.get(key) ?? { error: 0, raw: 0, norm: 0 };
      this.#inputs.set(key, {
        error: Math.max(before.error, error),
        raw: Math.max(before.raw, raw),
        norm: Math.max(before.norm, other.l2 ?? 0),
      });
    } else if (record.role === "output") this.#made.set(`${record.crc} ${other.crc}`, { error, raw });
    this.#before = Math.max(this.#before, error);
  }
}

function statusOf({ error, known }: Measured, inherited: number, { limit }: Tolerance): Status {
  if (error === 0) return "equal";
  if (!known) return "unknown";
  if (error <= limit) return "agrees";
  // Infinite errors that went in explain infinite ones that come out.
  const explained = inherited === Number.POSITIVE_INFINITY || error <= GROWTH * inherited;
  return explained ? "follows" : "origin";
}

/** Whatever crept in slowly counts where a stage ends. */
export const hasDrifted = ({ status, tolerance: { family } }: Finding): boolean =>
  status === "follows" && (family === "stage" || family === "gradient" || family === "weights");

export interface CompareOptions {
  /** Pixels of a token along a side: where seams would be. Default 16. */
  patch?: number;
  onProgress?: (done: number, all: number) => void;
}

/** Compares two dumps. */
export async function compareDumps(a: Dump, b: Dump, options: CompareOptions = {}): Promise<Comparison> {
  const [keys, otherKeys] = [keysOf(a.records), keysOf(b.records)];
  const others = new Map(b.records.map((record, i) => [otherKeys[i]!, record]));
  const findings: Finding[] = [];
  const onlyA: string[] = [];
  const lineage = new Lineage();
  await using left = new Tensors(a.folder);
  await using right = new Tensors(b.folder);
  for (const [order, record] of a.records.entries()) {
    const key = keys[order]!;
    const other = others.get(key);
    if (!other) {
      onlyA.push(key);
      continue;
    }
    others.delete(key);
    const made = lineage.made(record, other);
    const measured: Measured = made
      ? { ...made, estimated: true, known: true }
      : lineage.eased(record, await measure(record, other, left, right, lineage.floorOf(record)));
    const tolerance = toleranceOf(record, [record.dtype, other.dtype, a.header.weights, b.header.weights]);
    const inherited = lineage.of(record);
    lineage.add(record, other, measured);
    const { error, estimated, distance } = measured;
    const status = statusOf(measured, inherited, tolerance);
    const found = { record, other, order, status, error, estimated, inherited, tolerance };
    findings.push({ ...found, ...(distance ? { distance } : {}), why: reason(found) });
    options.onProgress?.(order + 1, a.records.length);
  }
  return judged(a, b, findings, onlyA, [...others.keys()], await picturePairs(a, b, options.patch ?? 16));
}

function judged(
  a: Dump,
  b: Dump,
  findings: Finding[],
  onlyA: string[],
  onlyB: string[],
  pictures: PicturePair[],
): Comparison {
  const first = findings.find(({ status }) => status === "origin" || status === "unknown");
  const warnings = [a, b]
    .filter(({ complete }) => !complete)
    .map(({ folder }) => `${folder}: it was cut short; only what it holds is compared`);
  if (onlyA.length + onlyB.length > 0) {
    warnings.push(
      `${onlyA.length} tensors are in A only and ${onlyB.length} in B only, such as ${(onlyA[0] ?? onlyB[0])!.split("|").slice(0, 2).join(" ")}`,
    );
  }
  const base = {
    a,
    b,
    differences: headerDifferences(a.header, b.header),
    findings,
    ...(first ? { first } : {}),
    onlyA,
    onlyB,
    pictures,
    warnings,
  };
  const ends = findings.some(hasDrifted);
  const seen = pictures.some(({ differs }) => differs);
  const aligned = findings.length > 0 && !first && !ends && !seen;
  return { ...base, aligned, sentence: verdictSentence({ ...base, aligned }) };
}
