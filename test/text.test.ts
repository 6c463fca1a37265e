// Token ids against those of transformers, tokenizers and open_clip: see fixtures/text/make.py.

import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  ClipTokenizer,
  cleanPrompt,
  loadTokenizer,
  repairText,
  SimpleTokenizer,
  T5Tokenizer,
  type Tokenizer,
  unescapeHtml,
} from "../lib/text/index.js";

const FIXTURES = join(import.meta.dirname, "fixtures", "text");

interface Goldens {
  texts: string[];
  variants: Record<string, [normalizers: (string | object)[], preTokenizers: object[]]>;
  added: object[];
  columns: Record<string, number[][]>;
}

const goldens = JSON.parse(unzip("goldens.json.gz").toString()) as Goldens;
let root = "";

function unzip(file: string): Buffer {
  return gunzipSync(readFileSync(join(FIXTURES, file)));
}

/** A folder of the fixtures with its packed files unpacked. */
function unpackFolder(name: string): string {
  const folder = join(root, name);
  cpSync(join(FIXTURES, name), folder, { recursive: true });
  for (const file of readdirSync(folder))
    if (/\.(json|model)\.gz$/.test(file))
      writeFileSync(join(folder, file.slice(0, -3)), unzip(join(name, file)));
  return folder;
}

/** The T5 folder with other normaliser and pre-tokenizer sections, as in fixtures/text/make.py. */
function t5Variant(name: string): string {
  const [normalizers, preTokenizers] = goldens.variants[name]!;
  const folder = join(root, `t5-${name}`);
  cpSync(join(root, "t5"), folder, { recursive: true });
  const json = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
  const chain = normalizers.map((step) => (step === "Precompiled" ? json.normalizer : step));
  json.normalizer = chain.length === 1 ? chain[0] : { type: "Sequence", normalizers: chain };
  json.pre_tokenizer =
    preTokenizers.length === 1 ? preTokenizers[0] : { type: "Sequence", pretokenizers: preTokenizers };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
  return folder;
}

function expectColumn(tokenizer: Tokenizer, column: string): void {
  const wanted = goldens.columns[column]!.map((ids) => ids.join(" "));
  const wrong = goldens.texts.flatMap((text, i) => {
    const got = tokenizer.tokens(text).join(" ");
    return got === wanted[i] ? [] : [{ text, got, wanted: wanted[i] }];
  });
  expect({ count: wrong.length, first: wrong.slice(0, 3) }).toEqual({ count: 0, first: [] });
}

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "danceflux-text-"));
  for (const name of ["clip", "clip-json", "t5", "t5-spiece"]) unpackFolder(name);
});

afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("CLIP", () => {
  it("gives transformers' ids from vocab.json and merges.txt", async () => {
    expectColumn(await ClipTokenizer.load(join(root, "clip")), "clip");
  });

  it("gives transformers' ids from tokenizer.json", async () => {
    expectColumn(await ClipTokenizer.load(join(root, "clip-json")), "clip-json");
  });

  it("finds added tokens with every flag like the tokenizers library", async () => {
    const folder = join(root, "clip-added");
    cpSync(join(root, "clip-json"), folder, { recursive: true });
    const json = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
    json.added_tokens.push(...goldens.added);
    writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
    expectColumn(await ClipTokenizer.load(folder), "clip-json:added");
  });

  it("pads to the length of its configuration and keeps the end token when it cuts", async () => {
    const tokenizer = await ClipTokenizer.load(join(root, "clip"));
    expect(tokenizer.contextLength).toBe(77);
    const row = tokenizer.encode("a cat");
    expect(row).toHaveLength(77);
    expect(row[0]).toBe(tokenizer.eosId - 1);
    expect(row.subarray(row.indexOf(tokenizer.eosId)).every((id) => id === tokenizer.padId)).toBe(true);
    const long = tokenizer.encode("cat ".repeat(100));
    expect(long[76]).toBe(tokenizer.eosId);
    expect(long.indexOf(tokenizer.eosId)).toBe(76);
    expect(tokenizer.vocabSize).toBe(tokenizer.eosId + 1);
  });

  it("encodes a list row by row", async () => {
    const tokenizer = await ClipTokenizer.load(join(root, "clip"), { maxLength: 9 });
    const both = tokenizer.encode(["a red cat", ""]);
    expect(both).toHaveLength(18);
    expect(both.subarray(0, 9)).toEqual(tokenizer.encode("a red cat"));
    expect(both.subarray(9)).toEqual(tokenizer.encode(""));
    expect(tokenizer.encode([])).toHaveLength(0);
  });

  it("does not get stuck on a word of a million letters", async () => {
    const tokenizer = await ClipTokenizer.load(join(root, "clip"));
    expect(tokenizer.tokens("ab".repeat(500_000))).toHaveLength(77);
  });

  it("takes lone surrogates for replacement characters", async () => {
    const tokenizer = await ClipTokenizer.load(join(root, "clip"));
    expect(tokenizer.tokens("a \ud800 b \udc00")).toEqual(tokenizer.tokens("a \ufffd b \ufffd"));
  });
});

describe("T5", () => {
  it("gives transformers' ids from tokenizer.json", async () => {
    expectColumn(await T5Tokenizer.load(join(root, "t5")), "t5");
  });

  it("gives transformers' ids from spiece.model alone", async () => {
    expectColumn(await T5Tokenizer.load(join(root, "t5-spiece")), "t5-spiece");
  });

  it.each(Object.keys(goldens.variants))("gives the ids of the tokenizers library: %s", async (name) => {
    expectColumn(await T5Tokenizer.load(t5Variant(name)), `t5:${name}`);
  });

  it("pads with 0 to the asked length and keeps </s> when it cuts", async () => {
    const tokenizer = await T5Tokenizer.load(join(root, "t5"), { maxLength: 16 });
    expect([tokenizer.contextLength, tokenizer.padId, tokenizer.eosId]).toEqual([16, 0, 1]);
    const [short, long] = [tokenizer.encode("a cat"), tokenizer.encode("a cat ".repeat(100))];
    expect(short.subarray(short.indexOf(1) + 1).every((id) => id === 0)).toBe(true);
    expect(long[15]).toBe(1);
    expect((await T5Tokenizer.load(join(root, "t5"))).contextLength).toBe(512);
  });

  it("refuses a length beyond model_max_length", async () => {
    await expect(T5Tokenizer.load(join(root, "t5"), { maxLength: 513 })).rejects.toMatchObject({
      code: "ERR_TOKENIZER",
      message: expect.stringContaining("expected 1 to 512 (model_max_length), got 513"),
    });
  });
});

describe("open_clip", () => {
  it("gives SimpleTokenizer's ids with ftfy's repairs", async () => {
    expectColumn(await SimpleTokenizer.load(join(root, "clip")), "open_clip-fixes");
  });

  it("gives SimpleTokenizer's ids without any repair", async () => {
    expectColumn(await SimpleTokenizer.load(join(root, "clip"), { repair: false }), "open_clip-basic");
  });

  it("reads the packed merges and tokenizer.json too", async () => {
    for (const path of [join(root, "clip", "bpe.txt.gz"), join(root, "clip-json")])
      expectColumn(await SimpleTokenizer.load(path), "open_clip-fixes");
  });

  it("differs from full ftfy only where that repairs wrongly decoded text", () => {
    const differing = goldens.texts.filter(
      (_, i) => goldens.columns.open_clip![i]!.join() !== goldens.columns["open_clip-fixes"]![i]!.join(),
    );
    // Random strings, which look like wrongly decoded text by accident; none of the hard list.
    expect(differing.length).toBeLessThan(goldens.texts.length / 50);
    expect(goldens.texts.slice(0, 69).filter((text) => differing.includes(text))).toEqual([]);
  });

  it("pads with zeros", async () => {
    const tokenizer = await SimpleTokenizer.load(join(root, "clip"));
    const row = tokenizer.encode("a cat");
    expect(row.subarray(row.indexOf(tokenizer.eosId) + 1).every((id) => id === 0)).toBe(true);
  });

  it("cleans as documented", () => {
    expect(unescapeHtml("&lt;b&gt; &amp;amp; &eacute &notit; &#39; &#x1F600;")).toBe("<b> &amp; é ¬it; ' 😀");
    expect(repairText("it\u2019s \uff26\uff35\uff2c\uff2c \ufb01ne\u0007 \u001b[31mred\u001b[0m")).toBe(
      "it's FULL fine red",
    );
    expect(cleanPrompt("  A\u00a0&amp;amp;\n B ")).toBe("a & b");
  });
});

describe("loadTokenizer", () => {
  it("finds out which tokenizer a folder holds", async () => {
    for (const name of ["clip", "clip-json"])
      expect(await loadTokenizer(join(root, name))).toBeInstanceOf(ClipTokenizer);
    for (const name of ["t5", "t5-spiece"])
      expect(await loadTokenizer(join(root, name))).toBeInstanceOf(T5Tokenizer);
  });

  it("does without tokenizer_config.json and special_tokens_map.json", async () => {
    for (const [name, column] of [
      ["clip", "clip"],
      ["t5-spiece", "t5-spiece"],
    ] as const) {
      const folder = join(root, `bare-${name}`);
      cpSync(join(root, name), folder, { recursive: true });
      rmSync(join(folder, "tokenizer_config.json"));
      rmSync(join(folder, "special_tokens_map.json"));
      const tokenizer = await loadTokenizer(folder);
      const i = goldens.texts.indexOf("A photo of a small red circle on a white background");
      expect(tokenizer.tokens(goldens.texts[i]!)).toEqual(goldens.columns[column]![i]);
    }
  });

  it("says what it looked for in an empty folder", async () => {
    const empty = mkdtempSync(join(root, "empty-"));
    await expect(loadTokenizer(empty)).rejects.toMatchObject({ code: "ERR_TOKENIZER" });
    await expect(ClipTokenizer.load(empty)).rejects.toThrow(
      "expected tokenizer.json, or vocab.json and merges.txt",
    );
    await expect(T5Tokenizer.load(empty)).rejects.toThrow("expected tokenizer.json or spiece.model");
    await expect(SimpleTokenizer.load(join(empty, "bpe.txt.gz"))).rejects.toThrow("not found");
  });
});
