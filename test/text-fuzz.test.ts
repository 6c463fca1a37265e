// Damaged tokenizer files: each must either load and encode, or be refused with ERR_TOKENIZER; never crash or hang.
//
// DANCEFLUX_FUZZ_SECONDS (default 2) sets how long, DANCEFLUX_FUZZ_SEED (default 1) where it starts. A failure prints
// the seed of its case; that seed alone repeats it.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { DanceError } from "../lib/errors.js";
import { CharsMap } from "../lib/text/charsmap.js";
import { loadTokenizer, SimpleTokenizer, type Tokenizer } from "../lib/text/index.js";

const FIXTURES = join(import.meta.dirname, "fixtures", "text");
const SECONDS = Number(process.env.DANCEFLUX_FUZZ_SECONDS ?? 2);
const FIRST_SEED = Number(process.env.DANCEFLUX_FUZZ_SEED ?? 1);
/** No single case may take longer; it stands for "hangs". */
const CASE_MILLISECONDS = 10_000;
const TEXT =
  "A photo\r\nof </s> a Red cat <|endoftext|> cafe\u0301 \ufb01ne \u{1f600}\u732b &amp; <extra_id_0> it's 42";

type Files = Map<string, Buffer>;
type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const root = mkdtempSync(join(tmpdir(), "danceflux-fuzz-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A whole number from 0 to n - 1. */
  below(n: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
}

function readFolder(name: string): Files {
  const files: Files = new Map();
  for (const file of readdirSync(join(FIXTURES, name))) {
    const bytes = readFileSync(join(FIXTURES, name, file));
    if (/\.(json|model)\.gz$/.test(file)) files.set(file.slice(0, -3), gunzipSync(bytes));
    else files.set(file, bytes);
  }
  return files;
}

const FOLDERS: readonly Files[] = ["clip", "clip-json", "t5", "t5-spiece"].map(readFolder);

/** The character map is a quarter of a megabyte and has its own cases below; without it far more cases fit. */
function withoutCharsMap(files: Files): Files {
  const json = JSON.parse(files.get("tokenizer.json")!.toString());
  json.normalizer = { type: "Sequence", normalizers: [{ type: "NFKC" }, { type: "Strip" }] };
  return new Map([...files, ["tokenizer.json", Buffer.from(JSON.stringify(json))]]);
}

/** The small and structured ones come up most. */
const CASES: readonly Files[] = [
  FOLDERS[0]!,
  FOLDERS[1]!,
  FOLDERS[1]!,
  withoutCharsMap(FOLDERS[2]!),
  ...FOLDERS,
];

const deep = (open: string, close: string): Json =>
  JSON.parse(open.repeat(2000) + close.repeat(2000)) as Json;
const NASTY: readonly Json[] = [
  null,
  true,
  -1,
  0.5,
  2 ** 31,
  2 ** 53,
  1e308,
  "",
  "<|endoftext|>",
  "\ud800",
  "a b c",
  "A".repeat(10_000),
  [],
  {},
  [[]],
  [["a", 1e308]],
  { type: "Sequence", normalizers: [] },
  { type: "toString" },
  JSON.parse('{"__proto__": {"type": "NFC"}}') as Json,
  deep("[", "]"),
  deep('{"type":"Sequence","normalizers":[', "]}"),
];

type Container = Json[] | { [key: string]: Json };
type Place = [owner: Container, key: string];

/** Every place of a JSON tree; of long lists and tables only a few, or vocabularies would drown the rest. */
function places(node: Json, random: Random, found: Place[] = []): Place[] {
  if (node === null || typeof node !== "object") return found;
  const keys = Object.keys(node);
  const chosen = keys.length <= 24 ? keys : [keys[0]!, random.pick(keys), random.pick(keys)];
  for (const key of chosen) {
    found.push([node, key]);
    places((node as Record<string, Json>)[key]!, random, found);
  }
  return found;
}

/** Replaces, removes or copies one value somewhere in a freshly parsed JSON tree. */
function mutateTree(node: Json, random: Random): Json {
  const all = places(node, random);
  if (all.length === 0) return random.pick(NASTY);
  const [owner, key] = random.pick(all);
  const table = owner as Record<string, Json>;
  const action = random.below(8);
  if (action === 0 && Array.isArray(owner)) owner.splice(Number(key), 1);
  else if (action === 0) delete table[key];
  else if (action === 1) table[random.pick(Object.keys(owner))] = table[key]!;
  else table[key] = random.pick(NASTY);
  return node;
}

function mutateBytes(bytes: Buffer, random: Random): Buffer {
  const at = random.below(bytes.length + 1);
  switch (random.below(5)) {
    case 0:
      return bytes.subarray(0, at);
    case 1:
      return Buffer.concat([
        bytes.subarray(0, at),
        Buffer.from(random.pick(["\0", "[", "{", '"', "\\", "1e999", "\xff"]), "latin1"),
        bytes.subarray(at),
      ]);
    case 2:
      return Buffer.concat([
        bytes.subarray(0, at),
        bytes.subarray(Math.min(bytes.length, at + 1 + random.below(64))),
      ]);
    case 3:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(random.below(at + 1))]);
    default: {
      const copy = Buffer.from(bytes);
      // Headers decide most: hit the first bytes as often as all others together.
      for (let i = random.below(8); i >= 0; i--)
        copy[random.below(random.below(2) === 0 ? Math.min(64, copy.length) : copy.length)] =
          random.below(256);
      return copy;
    }
  }
}

function mutate(files: Files, random: Random): Files {
  const damaged = new Map(files);
  for (let i = Math.max(1, random.below(6) - 2); i > 0; i--) {
    const [name, bytes] = random.pick([...damaged.entries()]);
    const action = random.below(10);
    if (action === 0) damaged.delete(name);
    else if (action < 6 && name.endsWith(".json") && bytes === files.get(name))
      damaged.set(
        name,
        Buffer.from(JSON.stringify(mutateTree(JSON.parse(bytes.toString()) as Json, random))),
      );
    else damaged.set(name, mutateBytes(bytes, random));
    if (damaged.size === 0) break;
  }
  return damaged;
}

function writeFolder(files: Files): string {
  const folder = join(root, "case");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  for (const [name, bytes] of files) writeFileSync(join(folder, name), bytes);
  return folder;
}

/** "loaded" or "refused"; throws on anything else. */
async function attempt(load: () => Promise<Tokenizer>): Promise<"loaded" | "refused"> {
  try {
    const tokenizer = await load();
    const ids = tokenizer.encode([TEXT, ""]);
    expect(ids).toHaveLength(2 * tokenizer.contextLength);
    expect(ids.every((id) => id >= 0 && id < tokenizer.vocabSize)).toBe(true);
    return "loaded";
  } catch (error) {
    if (error instanceof DanceError && error.code === "ERR_TOKENIZER") return "refused";
    throw error;
  }
}

async function runCase(seed: number): Promise<("loaded" | "refused")[]> {
  const random = new Random(seed);
  const folder = writeFolder(mutate(random.pick(CASES), random));
  const started = performance.now();
  try {
    const outcomes = [
      await attempt(() => loadTokenizer(folder)),
      await attempt(() => SimpleTokenizer.load(folder)),
    ];
    const bpe = join(folder, "bpe.txt.gz");
    outcomes.push(await attempt(() => SimpleTokenizer.load(bpe)));
    expect(performance.now() - started).toBeLessThan(CASE_MILLISECONDS);
    return outcomes;
  } catch (cause) {
    throw new Error(`repeat with DANCEFLUX_FUZZ_SEED=${seed}`, { cause });
  }
}

describe("damaged tokenizer files", () => {
  it("load or are refused", { timeout: SECONDS * 1000 + 60_000 }, async () => {
    const end = performance.now() + SECONDS * 1000;
    const count = { loaded: 0, refused: 0 };
    for (let seed = FIRST_SEED; performance.now() < end || seed < FIRST_SEED + 20; seed++)
      for (const outcome of await runCase(seed)) count[outcome]++;
    // Both must happen, or the mutations are too weak or too strong to test anything.
    expect(count.loaded).toBeGreaterThan(0);
    expect(count.refused).toBeGreaterThan(0);
  });

  const clip = (changes: Record<string, string>): Files =>
    new Map([...FOLDERS[0]!, ...Object.entries(changes).map(([k, v]) => [k, Buffer.from(v)] as const)]);

  it.each<[what: string, files: Files, message: string]>([
    [
      "truncated JSON",
      clip({ "vocab.json": '{"a": 1, "b' }),
      "vocab.json: expected JSON, got a syntax error",
    ],
    [
      "a vocabulary that is a list",
      clip({ "vocab.json": "[1]" }),
      "vocab.json: expected an object, got a list of 1",
    ],
    [
      "a huge id",
      clip({ "vocab.json": '{"a": 1e300}' }),
      "expected a token id from 0 to 16777215, got 1e+300",
    ],
    [
      "a merge of three",
      clip({ "merges.txt": "#version: 0.2\na b c\n" }),
      'merges.txt:2: expected two symbols, got "a b c"',
    ],
    [
      "a merge of unknown symbols",
      clip({ "merges.txt": "qqq qqq\n" }),
      'merge 1 needs "qqq", which the vocabulary lacks',
    ],
    [
      "no merges",
      new Map([...FOLDERS[0]!].filter(([name]) => name !== "merges.txt")),
      "merges.txt: not found",
    ],
    [
      "an unknown length",
      clip({ "tokenizer_config.json": '{"model_max_length": "x"}' }),
      "expected a length of at least 1",
    ],
    [
      "left padding",
      clip({ "tokenizer_config.json": '{"padding_side": "left"}' }),
      'expected "right", got "left"',
    ],
    [
      "no special token",
      clip({ "tokenizer_config.json": '{"eos_token": "<eos>"}', "special_tokens_map.json": "{}" }),
      "special token <eos>",
    ],
    [
      "a model of another kind",
      new Map([["tokenizer.json", Buffer.from('{"model": {"type": "WordPiece"}}')]]),
      "expected BPE or Unigram",
    ],
    [
      "a foreign pattern",
      new Map([["tokenizer.json", foreignPattern()]]),
      "is not one that CLIP or T5 tokenizers use",
    ],
    ["an empty SentencePiece model", new Map([["spiece.model", Buffer.alloc(0)]]), "got no pieces"],
    [
      "a SentencePiece model cut short",
      new Map([["spiece.model", FOLDERS[3]!.get("spiece.model")!.subarray(0, 5000)]]),
      "expected a SentencePiece model",
    ],
  ])("names the trouble: %s", async (_, files, message) => {
    const folder = writeFolder(files);
    await expect(loadTokenizer(folder)).rejects.toMatchObject({
      code: "ERR_TOKENIZER",
      message: expect.stringContaining(message),
    });
  });

  it("ends although merges refer to each other in a circle", async () => {
    const vocab = {
      a: 0,
      b: 1,
      ab: 2,
      ba: 3,
      aba: 4,
      "b</w>": 5,
      "<|startoftext|>": 6,
      "<|endoftext|>": 7,
      "": 8,
    };
    const merges = "a b\nb a\nab a\na ba\na b\naba \n a\n \n";
    const folder = writeFolder(
      clip({ "vocab.json": JSON.stringify(vocab), "merges.txt": merges, "tokenizer_config.json": "{}" }),
    );
    const tokenizer = await loadTokenizer(folder).catch((error: unknown) => error as DanceError);
    if (tokenizer instanceof Error) expect(tokenizer.code).toBe("ERR_TOKENIZER");
    else expect(tokenizer.tokens("ab".repeat(5000)).length).toBeLessThanOrEqual(77);
  });
});

describe("damaged character maps", () => {
  const unit = (label: number, offset: number, value = 0): number =>
    ((offset << 10) | (value << 8) | label) >>> 0;

  function charsMap(units: number[], replacements: string, declared = units.length * 4): Uint8Array {
    const tail = Buffer.from(replacements);
    const bytes = Buffer.alloc(4 + units.length * 4 + tail.length);
    bytes.writeUInt32LE(declared, 0);
    for (const [i, u] of units.entries()) bytes.writeUInt32LE(u, 4 + 4 * i);
    tail.copy(bytes, 4 + units.length * 4);
    return bytes;
  }

  /** A trie of 512 units in which "a" (97) maps to whatever lies at `value`. */
  function oneLetter(value: number, child = 256): number[] {
    const units = new Array<number>(512).fill(0);
    units[0] = unit(0, 1);
    units[1 ^ 97] = unit(97, (1 ^ 97 ^ child) >>> 0, 1);
    if (child < 512) units[child] = (value | 0x8000_0000) >>> 0;
    return units;
  }

  it("maps a letter when it is whole", () => {
    const map = new CharsMap(charsMap(oneLetter(2), "x\0yz\0"), "map");
    expect(map.normalize("banana \u{1f600}a")).toBe("byznyznyz \u{1f600}yz");
  });

  it.each<[what: string, bytes: Uint8Array]>([
    ["nothing", new Uint8Array(0)],
    ["three bytes", new Uint8Array(3)],
    ["no trie", charsMap([], "")],
    ["a trie longer than the file", charsMap([0, 0], "", 2 ** 31)],
    ["a trie of broken units", charsMap([0, 0], "", 6)],
    ["a value behind the replacements", charsMap(oneLetter(99), "x\0")],
    ["a value inside a letter", charsMap(oneLetter(1), "\u732b\0")],
    ["a value node outside the trie", charsMap(oneLetter(0, 0x3ff00), "x\0")],
    ["a first node outside the trie", charsMap([unit(0, 5000)], "x\0")],
    ["replacements that are no UTF-8", Buffer.concat([charsMap(oneLetter(0), ""), Buffer.from([0xff, 0])])],
  ])("refuses %s", (_, bytes) => {
    expect(() => new CharsMap(bytes, "map")).toThrow(expect.objectContaining({ code: "ERR_TOKENIZER" }));
  });

  it("ends when its nodes form a circle", () => {
    const units = new Array<number>(256).fill(0);
    for (let c = 1; c < 256; c++) units[c] = unit(c, c);
    expect(new CharsMap(charsMap(units, "x\0"), "map").normalize("abc")).toBe("abc");
  });
});

function foreignPattern(): Buffer {
  const json = JSON.parse(FOLDERS[1]!.get("tokenizer.json")!.toString()) as { pre_tokenizer: unknown };
  json.pre_tokenizer = { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Removed", invert: true };
  return Buffer.from(JSON.stringify(json));
}
