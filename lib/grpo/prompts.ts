// Which prompts there are, and in which order they come: N prompts, R ranks.

import { readFile } from "node:fs/promises";
import { extname } from "node:path";
import { DanceError } from "../errors.js";

export interface Prompt {
  readonly text: string;
  /** Line of the file, from 1; place in the list for prompts that come from no file. */
  readonly line: number;
  /** Everything else that a .jsonl line holds. */
  readonly data: Readonly<Record<string, unknown>>;
}

function promptsError(where: string, what: string, cause?: unknown): DanceError {
  return new DanceError("ERR_PROMPTS", `${where}: ${what}`, cause === undefined ? {} : { cause });
}

type LineReader = (line: string, where: string) => Omit<Prompt, "line">;

const readTextLine: LineReader = (line) => ({ text: line.trim(), data: {} });

const readJsonLine: LineReader = (line, where) => {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw promptsError(
      where,
      `expected one JSON object, got a syntax error (${(cause as Error).message})`,
      cause,
    );
  }
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw promptsError(where, `expected one JSON object, got ${kindOf(value)}`);
  const { prompt, ...data } = value as Record<string, unknown>;
  if (typeof prompt !== "string" || prompt.trim() === "")
    throw promptsError(where, `expected "prompt" to be a string with some text, got ${kindOf(prompt)}`);
  return { text: prompt.trim(), data };
};

const FORMATS: Readonly<Record<string, LineReader>> = { ".txt": readTextLine, ".jsonl": readJsonLine };

function kindOf(value: unknown): string {
  if (value === undefined) return "nothing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "string" ? "an empty string" : `a value of type ${typeof value}`;
}

/**
 * Prompts of a file's text: one per line for `.txt`, one object with `prompt` per line for `.jsonl`. Blank lines are
 * skipped, white space around a prompt is dropped. Throws DanceError `ERR_PROMPTS` that names file and line.
 */
export function parsePrompts(text: string, path: string): Prompt[] {
  const format = extname(path).toLowerCase();
  const read = Object.hasOwn(FORMATS, format) ? FORMATS[format] : undefined;
  if (!read)
    throw promptsError(
      path,
      `expected a name that ends in ${Object.keys(FORMATS).join(" or ")}, got "${format}"`,
    );
  const prompts: Prompt[] = [];
  text.split(/\r\n|\n|\r/).forEach((line, i) => {
    // trim() also takes the byte order mark that some editors put first.
    const content = line.trim();
    if (content !== "") prompts.push({ ...read(content, `${path}:${i + 1}`), line: i + 1 });
  });
  if (prompts.length === 0) throw promptsError(path, "expected at least one prompt, got none");
  return prompts;
}

/** Reads a prompt file (see {@link parsePrompts}) or takes a list of prompts. */
export async function loadPrompts(source: string | readonly string[]): Promise<Prompt[]> {
  if (typeof source !== "string") return fromList(source);
  let bytes: Uint8Array;
  try {
    bytes = await readFile(source);
  } catch (cause) {
    throw promptsError(source, `cannot be read (${(cause as Error).message})`, cause);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw promptsError(source, "expected UTF-8 text, got other bytes", cause);
  }
  return parsePrompts(text, source);
}

function fromList(list: readonly string[]): Prompt[] {
  if (list.length === 0) throw promptsError("prompts", "expected at least one prompt, got none");
  return list.map((text, i) => {
    if (typeof text !== "string" || text.trim() === "")
      throw promptsError(`prompts[${i}]`, `expected a string with some text, got ${kindOf(text)}`);
    return { text: text.trim(), line: i + 1, data: {} };
  });
}

const WEYL = [0x9e3779b9, 0xbb67ae85] as const;
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57] as const;

/** The high 32 bits of a product of two 32-bit numbers. */
function multiplyHigh(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carry = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (carry >>> 16)) >>> 0;
}

export type Words4 = readonly [number, number, number, number];

/**
 * Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011): 128 random bits as a pure function of counter and key, all
 * unsigned 32-bit words.
 */
export function philox4x32(counter: Words4, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [multiplyHigh(MULTIPLIERS[0], c0), Math.imul(MULTIPLIERS[0], c0) >>> 0];
    const [high1, low1] = [multiplyHigh(MULTIPLIERS[1], c2), Math.imul(MULTIPLIERS[1], c2) >>> 0];
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** Fourth counter word, so that no other use of the same seed meets these bits: "ordr" in ASCII. */
const PURPOSE_ORDER = 0x6f726472;
const WORD = 2 ** 32;

/**
 * The order of N prompts in one epoch: prompt i gets the 64-bit number philox(counter = (i, epoch, 0, purpose),
 * key = seed), and prompts come by rising number, equal ones by place. So the order depends on nothing but its
 * arguments, and every order is equally likely.
 *
 * @param seed 0 to 2^53 - 1
 */
export function epochOrder(count: number, seed: number, epoch: number): Uint32Array {
  const key = [seed % WORD, Math.floor(seed / WORD)] as const;
  const counterEpoch = [epoch % WORD, Math.floor(epoch / WORD)] as const;
  const high = new Uint32Array(count);
  const low = new Uint32Array(count);
  for (let i = 0; i < count; i++)
    [high[i], low[i]] = philox4x32([i, counterEpoch[0], counterEpoch[1], PURPOSE_ORDER], key) as [
      number,
      number,
      number,
      number,
    ];
  return Uint32Array.from({ length: count }, (_, i) => i).sort(
    (a, b) => high[a]! - high[b]! || low[a]! - low[b]! || a - b,
  );
}

/** Where an order stands: the next prompt is number `index` of epoch `epoch`, both from 0. The same on all ranks. */
export interface PromptPosition {
  epoch: number;
  index: number;
}

export interface PromptOrderOptions {
  /** Every epoch repeats the order of epoch 0 (what DanceGRPO's trainer does). Default false. */
  sameOrderEveryEpoch?: boolean;
  /** Where to go on. Default the beginning. */
  position?: PromptPosition;
}

/** Which part of every step belongs to this process. */
export interface RankSlice {
  rank: number;
  worldSize: number;
}

/**
 * Endless stream of prompt numbers: epoch after epoch, each a full permutation, so within an epoch no prompt is lost
 * or repeated at any number of ranks. A step of all ranks takes R * n consecutive numbers of the stream, rank r the
 * r-th n of them; a step may reach from one epoch into the next. Since the position is that of the stream, a run may
 * go on with another number of ranks.
 */
export class PromptOrder {
  readonly count: number;
  readonly #seed: number;
  readonly #same: boolean;
  #position: PromptPosition;
  #order: { epoch: number; numbers: Uint32Array } | undefined;

  /** @param count N, the number of prompts */
  constructor(count: number, seed: number, options: PromptOrderOptions = {}) {
    this.count = checkWhole("count", count, 1, WORD - 1);
    this.#seed = checkWhole("seed", seed, 0, Number.MAX_SAFE_INTEGER);
    this.#same = options.sameOrderEveryEpoch ?? false;
    const { epoch, index } = options.position ?? { epoch: 0, index: 0 };
    checkWhole("position.epoch", epoch, 0, Number.MAX_SAFE_INTEGER);
    // A position beyond the file means that the file is another one than when the position was saved.
    checkWhole("position.index", index, 0, count - 1);
    this.#position = { epoch, index };
  }

  get position(): PromptPosition {
    return { ...this.#position };
  }

  /** The numbers of this rank's next `perRank` prompts; moves on by those of all ranks. */
  take(perRank: number, slice: RankSlice = { rank: 0, worldSize: 1 }): number[] {
    checkWhole("perRank", perRank, 1, WORD - 1);
    checkWhole("worldSize", slice.worldSize, 1, WORD - 1);
    checkWhole("rank", slice.rank, 0, slice.worldSize - 1);
    const numbers = Array.from({ length: perRank }, (_, i) => this.#at(slice.rank * perRank + i));
    this.#position = this.#ahead(perRank * slice.worldSize);
    return numbers;
  }

  #ahead(distance: number): PromptPosition {
    const place = this.#position.index + distance;
    return { epoch: this.#position.epoch + Math.floor(place / this.count), index: place % this.count };
  }

  #at(distance: number): number {
    const { epoch, index } = this.#ahead(distance);
    const drawn = this.#same ? 0 : epoch;
    if (this.#order?.epoch !== drawn)
      this.#order = { epoch: drawn, numbers: epochOrder(this.count, this.#seed, drawn) };
    return this.#order.numbers[index]!;
  }
}

function checkWhole(name: string, value: number, least: number, most: number): number {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw promptsError(
    "PromptOrder",
    `${name}: expected a whole number from ${least} to ${most}, got ${value}`,
  );
}
