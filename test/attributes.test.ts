// The attribute check of models/tiny-shapes reads what the Python one reads.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { createPicture, type Picture, readPicture } from "../lib/image/index.js";

const fixture = (name: string) => new URL(`./fixtures/attributes/${name}`, import.meta.url).pathname;

interface Check {
  labelsOf(caption: string): number[];
  readAttributes(picture: Picture): number[];
  default: {
    create(options?: { attribute?: unknown }): (pictures: Picture[], prompts: string[]) => number[];
  };
}

interface Entry {
  caption: string;
  labels: number[];
  reading: number[];
}

// A variable keeps the compiler from looking for types of a plain script.
const path = new URL("../models/tiny-shapes/attributes.mjs", import.meta.url).href;
const check = (await import(path)) as Check;
const entries = JSON.parse(readFileSync(fixture("readings.json"), "utf8")) as Entry[];
const sheet = await readPicture(fixture("sheet.png"));
const SIDE = 64;
const COLUMNS = sheet.width / SIDE;

function tile(index: number): Picture {
  const picture = createPicture(SIDE, SIDE);
  const left = (index % COLUMNS) * SIDE;
  const top = Math.floor(index / COLUMNS) * SIDE;
  for (let y = 0; y < SIDE; y++) {
    const from = ((top + y) * sheet.width + left) * 3;
    picture.data.set(sheet.data.subarray(from, from + SIDE * 3), y * SIDE * 3);
  }
  return picture;
}

describe("the attribute check", () => {
  it("reads captions", () => {
    expect(entries.map(({ caption }) => check.labelsOf(caption))).toEqual(
      entries.map(({ labels }) => labels),
    );
    expect(() => check.labelsOf("a cat")).toThrow(
      'expected a caption such as "two red circles on a gray background", got "a cat"',
    );
  });

  it("reads what the Python check reads, in whole and in damaged pictures", () => {
    expect(entries.map((_, i) => check.readAttributes(tile(i)))).toEqual(
      entries.map(({ reading }) => reading),
    );
    expect(entries.some(({ reading }) => reading.includes(-1))).toBe(true);
  });

  it("scores the share of attributes that are right", () => {
    const whole = entries.findIndex(({ labels, reading }) => labels.join() === reading.join());
    const { caption } = entries[whole]!;
    const other = caption.startsWith("one") ? caption.replace("one", "two") : caption.replace("two", "one");
    const score = check.default.create();
    expect(score([tile(whole), tile(whole)], [caption, other])).toEqual([1, 0.75]);
    const count = check.default.create({ attribute: "count" });
    expect(count([tile(whole), tile(whole)], [caption, other])).toEqual([1, 0]);
    expect(() => check.default.create({ attribute: "size" })).toThrow(
      "attribute: expected one of count, colour, shape, background",
    );
  });
});
