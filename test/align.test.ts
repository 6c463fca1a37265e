// Comparing tensors, dumps and pictures: hand-made cases.
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compareDumps, estimatedError } from "../lib/align/compare.js";
import { headerDifferences } from "../lib/align/compare_headers.js";
import { type DumpHeader, type DumpRecord, DumpWriter, readDump } from "../lib/align/dump.js";
import {
  compareTensors,
  memoryTensor,
  parseSide,
  pictureCheck,
  seedAll,
  TensorFile,
} from "../lib/align/index.js";
import { furthest } from "../lib/align/pages.js";
import { parseSteps } from "../lib/align/record.js";
import { toleranceOf } from "../lib/align/thresholds.js";
import { CURVE_LIMIT, compareRuns } from "../lib/align/training.js";
import { completeConfig } from "../lib/grpo/validate.js";
import { createPicture, type Picture } from "../lib/image/index.js";
import { native } from "../lib/native.js";
import { checkDeviceOptions } from "../lib/options.js";
import type { Run } from "../lib/report/run.js";
import { testFolder } from "./support/device.js";

const folder = testFolder();

const HEADER: DumpHeader = {
  danceflux: "dump",
  version: 2,
  program: "danceflux 0.1.0",
  level: "op",
  summary: "statistics",
  seed: 1,
  device: { name: "cpu", description: "test", options: {} },
  weights: "f32",
  versions: {},
  environment: {},
  config: { sampling: { steps: 4, batch: 2 } },
  model: {},
};

const hex = (crc: number) => crc.toString(16).padStart(8, "0");

/** A record of numbers, as the native recorder would write it. */
function record(name: string, values: number[], more: Partial<DumpRecord> = {}): DumpRecord {
  const floats = Float32Array.from(values);
  const measure = new (native().Measure)();
  measure.add(new Uint8Array(floats.buffer), "f32");
  const { crc, ...statistics } = measure.result();
  const base = { stage: "s", name, block: "", op: "linear", role: "output", index: 0, dtype: "f32" } as const;
  return { ...base, shape: [values.length], crc: hex(crc), ...statistics, ...more };
}

let dumps = 0;
async function dump(records: DumpRecord[], header: Partial<DumpHeader> = {}) {
  const path = join(folder, `dump-${dumps++}`);
  const writer = await DumpWriter.create(path, { ...HEADER, ...header });
  await writer.write(records.map((each) => JSON.stringify(each)));
  await writer.end(0.5);
  return readDump(path);
}

const wave = (count: number, phase = 0, size = 1) =>
  Array.from({ length: count }, (_, i) => size * Math.sin(0.37 * i + phase));

describe("compareTensors", () => {
  it("measures what is told of two tensors", async () => {
    const distance = await compareTensors([1, 2, 3, 4], [1, 2, 3, 5]);
    expect(distance).toMatchObject({
      count: 4,
      equal: 3,
      odd: 0,
      maxAbsolute: 1,
      worst: 3,
      oneThousandth: 0.75,
    });
    expect(distance.maxRelative).toBeCloseTo(0.2, 6);
    expect(distance.euclidean).toBe(1);
    expect(distance.relative).toBeCloseTo(1 / Math.sqrt(39), 12);
    expect(distance.cosine).toBeCloseTo(34 / Math.sqrt(30 * 39), 12);
    expect(distance.ulps[0]).toBe(3);
  });

  it("knows zeros, NaN and infinities", async () => {
    expect(await compareTensors([0, 0], [0, 0])).toMatchObject({ cosine: 1, relative: 0, equal: 2 });
    const zero = await compareTensors([0, 0], [0, 1]);
    expect([zero.cosine, zero.relative]).toEqual([Number.NaN, 1]);
    expect((await compareTensors([1], [0])).relative).toBe(Number.POSITIVE_INFINITY);
    const odd = await compareTensors([Number.NaN, Number.NaN, 1], [Number.NaN, 2, 1]);
    expect(odd).toMatchObject({ odd: 1, equal: 2, relative: Number.POSITIVE_INFINITY });
  });

  it("refuses other shapes", async () => {
    await expect(compareTensors([1, 2], [1])).rejects.toMatchObject({ code: "ERR_SHAPE" });
  });

  it("reads files in pieces, in unequal dtypes too, and tells damaged ones", async () => {
    const count = 3_000_000; // more than one piece
    const path = join(folder, "pair.safetensors");
    const floats = Float32Array.from({ length: count }, (_, i) => (i % 977) / 64);
    const halves = Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16);
    const bytes = 6 * count;
    const header = JSON.stringify({
      a: { dtype: "F32", shape: [count], data_offsets: [0, 4 * count] },
      b: { dtype: "BF16", shape: [count], data_offsets: [4 * count, bytes] },
    }).padEnd(160);
    const prefix = Buffer.alloc(8);
    prefix.writeBigUInt64LE(160n);
    const data = [new Uint8Array(floats.buffer), new Uint8Array(halves.buffer)];
    writeFileSync(path, Buffer.concat([prefix, Buffer.from(header), ...data]));
    await using file = await TensorFile.open(path);
    expect((await compareTensors(file.tensor("a"), memoryTensor(floats))).equal).toBe(count);
    const mixed = await compareTensors(file.tensor("a"), file.tensor("b"));
    expect(mixed.count).toBe(count);
    expect(mixed.relative).toBeGreaterThan(1e-4);
    expect(mixed.relative).toBeLessThan(1e-2);
    truncateSync(path, 1000);
    await expect(TensorFile.open(path)).rejects.toMatchObject({ code: "ERR_DUMP" });
  });
});

describe("estimates from statistics", () => {
  it("are near the true error, for turned tensors too", () => {
    const b = record("x", wave(4000));
    for (const [size, phase] of [
      [1, 1e-3],
      [1, 0.5],
      [1.001, 0],
    ] as const) {
      const a = record("x", wave(4000, phase, size));
      const apart = wave(4000, phase, size).map((value, i) => value - wave(4000)[i]!);
      const truth = Math.hypot(...apart) / Math.hypot(...wave(4000));
      expect(estimatedError(a, b) / truth).toBeGreaterThan(0.3);
      expect(estimatedError(a, b) / truth).toBeLessThan(3);
    }
  });
});

describe("estimates of differences in a few elements", () => {
  // A picture in whole levels differs in single pixels by exactly one: steps of one size must not cancel out.
  it("miss none, wherever they are", () => {
    const before = wave(5000);
    const b = record("x", before);
    for (let i = 0; i < 500; i++) {
      const places = [i, (i * 7919 + 13) % 5000, (i * 104729 + 4099) % 5000].slice(0, 1 + (i % 3));
      const after = [...before];
      for (const [k, place] of places.entries()) after[place]! += k % 2 ? -0.5 : 0.5;
      const truth = (0.5 * Math.sqrt(new Set(places).size)) / Math.hypot(...before);
      const estimate = estimatedError(record("x", after), b) / truth;
      expect(estimate).toBeGreaterThan(0.15);
      expect(estimate).toBeLessThan(3);
    }
  });
});

describe("compareDumps", () => {
  it("finds the op where a difference begins, and what only follows from it", async () => {
    const input = record("attn", wave(100), { op: "attention", role: "input" });
    const right = [record("q", wave(100)), input, record("attn", wave(100, 1), { op: "attention" })];
    right.push(record("out", wave(100, 1), { role: "input" }), record("out", wave(100, 2)));
    const wrong = [...right];
    wrong[2] = record("attn", wave(100, 1.5), { op: "attention" });
    wrong[3] = record("out", wave(100, 1.5), { role: "input" });
    wrong[4] = record("out", wave(100, 2.4));
    const comparison = await compareDumps(await dump(wrong), await dump(right));
    expect(comparison.aligned).toBe(false);
    expect(comparison.first?.record.name).toBe("attn");
    expect(comparison.findings.map(({ status }) => status)).toEqual([
      "equal",
      "equal",
      "origin",
      "follows",
      "follows",
    ]);
    expect(comparison.sentence).toMatch(/^Not aligned: it begins at attn \(attention\) in s: relative error/);
  });

  it("calls roundings aligned, and small errors that grew too large not", async () => {
    const right = [record("a", wave(1000)), record("b", wave(1000), { op: "stage" })];
    const rounded = right.map((each) => record(each.name, wave(1000, 1e-6), { op: each.op }));
    expect((await compareDumps(await dump(rounded), await dump(right))).aligned).toBe(true);
    const whole = (name: string, values: number[], op: string) => record(name, values, { op, values });
    const grown = [whole("a", wave(1000, 4.5e-5), "linear"), whole("b", wave(1000, 1.1e-3), "stage")];
    const exact = [whole("a", wave(1000), "linear"), whole("b", wave(1000), "stage")];
    const comparison = await compareDumps(await dump(grown), await dump(exact));
    expect([comparison.aligned, comparison.first]).toEqual([false, undefined]);
    expect(comparison.sentence).toContain("no single op is to blame");
  });

  it("holds what is left of a sum against what went in", async () => {
    const side = (rest: number) => [
      record("d", [1, 2], { op: "sub", role: "input" }),
      record("d", [rest, 0], { op: "sub" }),
      record("e", [rest, 0], { op: "exp", role: "input" }),
      record("e", [1, 1], { op: "exp" }),
    ];
    expect((await compareDumps(await dump(side(1e-8)), await dump(side(0)))).aligned).toBe(true);
    expect((await compareDumps(await dump(side(0.1)), await dump(side(0)))).first?.record.name).toBe("d");
  });

  it("tells shapes, NaN, missing tensors, cut files and equal bits", async () => {
    const right = await dump([record("a", [1, 2]), record("b", [1, 2]), record("c", [1])]);
    const odd = await compareDumps(await dump([record("a", [1, 2, 3]), record("b", [Number.NaN, 2])]), right);
    expect(odd.findings.map(({ why }) => why)).toEqual([
      "shape [3] against [2]: nothing to compare",
      "1 NaN and 0 infinite elements against 0 NaN and 0 infinite",
    ]);
    expect(odd.onlyB).toEqual(["s|c|output|0"]);
    expect((await compareDumps(right, right)).sentence).toBe("Aligned: all 3 tensors have the same bits.");
    writeFileSync(
      join(right.folder, "manifest.jsonl"),
      readFileSync(join(right.folder, "manifest.jsonl")).subarray(0, -10),
    );
    const cut = await readDump(right.folder);
    expect([cut.complete, cut.records.length]).toEqual([false, 3]);
    expect((await compareDumps(cut, cut)).warnings[0]).toContain("cut short");
  });

  it("only says that checksums differ when nothing else is known", async () => {
    const bare = (crc: string): DumpRecord => {
      const { stage, name, block, op, role, index, dtype, shape, count } = record("a", [1]);
      return { stage, name, block, op, role, index, dtype, shape, count, crc };
    };
    const comparison = await compareDumps(await dump([bare("00000000")]), await dump([bare("00000001")]));
    expect(comparison.findings[0]).toMatchObject({ status: "unknown" });
    expect(comparison.sentence).toContain("the checksums differ");
  });

  it("refuses what is no dump", async () => {
    await expect(readDump(join(folder, "nothing"))).rejects.toMatchObject({ code: "ERR_DUMP" });
    mkdirSync(join(folder, "bad"));
    writeFileSync(join(folder, "bad", "manifest.jsonl"), '{"danceflux":"dump","version":9}\n');
    await expect(readDump(join(folder, "bad"))).rejects.toThrow(/version 2, got 9/);
    const hostile = `${JSON.stringify(HEADER)}\n${JSON.stringify({ ...record("a", [1]), file: "../../etc/passwd" })}\n`;
    writeFileSync(join(folder, "bad", "manifest.jsonl"), hostile);
    await expect(readDump(join(folder, "bad"))).rejects.toMatchObject({ code: "ERR_DUMP" });
    await expect(DumpWriter.create(join(folder, "bad"), HEADER)).rejects.toMatchObject({
      code: "ERR_OUTPUT",
    });
  });

  it("tells set-ups first: seeds and options compute something else, devices and batches do not", () => {
    const other = { ...HEADER, seed: 2, config: { sampling: { steps: 5, batch: 1 } }, weights: "bf16" };
    expect(headerDifferences(HEADER, other).map(({ name, kind }) => `${name} ${kind}`)).toEqual([
      "seed setup",
      "config.sampling.steps setup",
      "config.sampling.batch side",
      "weights side",
    ]);
  });

  it("takes the coarser dtype's tolerance", () => {
    const limit = (dtypes: string[]) =>
      toleranceOf({ op: "linear", role: "output", block: "" }, dtypes).limit;
    expect(limit(["f32", "bf16"])).toBe(limit(["bf16", "bf16"]));
    expect(limit(["f32", "f32"])).toBeLessThan(limit(["f32", "f16"]));
    expect(limit(["f32", "f16"])).toBeLessThan(limit(["f16", "bf16"]));
  });
});

describe("curves of two trainings", () => {
  /** `loss` and `norm` scale what an iteration gives; ratios are 1 but for `spread`. */
  const run = (salt: number, { loss = 1, norm = 1, spread = 0 } = {}) =>
    ({
      pictures: [],
      iterations: Array.from({ length: 60 }, (_, i) => ({
        reward: { mean: 0.5 + i / 200, std: 0.2 },
        advantage: { mean: 0, std: 0.96 },
        ratio: { mean: 1, std: spread },
        loss: loss * Math.sin(17 * i + salt),
        gradientNorm: norm * (0.01 + 0.001 * Math.sin(5 * i)),
      })),
    }) as unknown as Run;
  const shares = async (a: Run, b: Run) => {
    const { curves, aligned } = await compareRuns(a, b);
    return { aligned, off: curves.filter(({ share }) => share > CURVE_LIMIT).map(({ name }) => name) };
  };

  it("hold a loss against its terms: what is left of ratios that are all 1 are roundings", async () => {
    expect(await shares(run(1, { loss: 3e-9 }), run(2, { loss: 3e-9 }))).toEqual({ aligned: true, off: [] });
    expect(await shares(run(1, { loss: 1e-2 }), run(2, { loss: 1e-3 }))).toEqual({
      aligned: false,
      off: ["loss"],
    });
    expect(
      (await shares(run(1, { loss: 1e-3, spread: 0.1 }), run(2, { loss: 1e-3, spread: 0.1 }))).aligned,
    ).toBe(true);
  });

  it("see gradients that are a tenth too large", async () => {
    const wrong = await shares(run(1, { loss: 1e-9, norm: 1.1 }), run(1, { loss: 1e-9 }));
    expect(wrong).toEqual({ aligned: false, off: ["gradient norm"] });
  });

  it("are drawn with the deviations furthest from zero", () => {
    const all = Array.from({ length: 1200 }, (_, i) => (i === 700 ? -5 : Math.sin(i)));
    const { group, places, values } = furthest(all);
    expect([group, places.length, Math.min(...values), places[values.indexOf(-5)]]).toEqual([
      3, 400, -5, 700,
    ]);
    expect(furthest([1, 2]).values).toEqual([1, 2]);
  });
});

describe("pictureCheck", () => {
  const SIDE = 128;
  function paint(level: (x: number, y: number) => readonly [number, number, number]): Picture {
    const picture = createPicture(SIDE, SIDE);
    for (let y = 0; y < SIDE; y++)
      for (let x = 0; x < SIDE; x++) picture.data.set(level(x, y).map(Math.round), 3 * (y * SIDE + x));
    return picture;
  }
  const soft = (x: number, y: number) => 128 + 60 * Math.sin(x / 19) * Math.cos(y / 23);
  const noise = (x: number, y: number) => 6 * Math.sin(12.9898 * x + 78.233 * y + x * y);
  const plain = paint((x, y) => [soft(x, y) + noise(x, y), soft(y, x) + noise(y, x), 120 + noise(x, y)]);
  const warnings = (picture: Picture, options = {}) =>
    pictureCheck(picture, { reference: plain, ...options }).warnings;

  it("has nothing to say of a picture and of one with a little noise", () => {
    expect(pictureCheck(plain).warnings).toEqual([]);
    expect(warnings(plain)).toEqual([]);
    expect(
      warnings(paint((x, y) => [soft(x, y) + noise(x + 1, y), soft(y, x) + noise(y, x), 120 + noise(y, x)])),
    ).toEqual([]);
  });

  it("sees blocks of colour with seams at the patches", () => {
    const blocks = paint((x, y) => {
      const lift = 40 * (((x >> 4) * 7 + (y >> 4) * 3) % 3) - 40;
      return [soft(x, y) + noise(x, y) + lift, soft(y, x) + noise(y, x) - lift, 120 + noise(x, y)];
    });
    expect(warnings(blocks).join()).toContain("seams");
  });

  it("sees a grid inside the patches", () => {
    const grid = paint((x, y) => {
      const dip = x % 8 === 3 || y % 8 === 3 ? -14 : 0;
      return [soft(x, y) + noise(x, y) + dip, soft(y, x) + noise(y, x) + dip, 120 + noise(x, y) + dip];
    });
    expect(warnings(grid).join()).toContain("a grid");
  });

  it("sees dead and saturated areas and shifted colours", () => {
    expect(warnings(paint((x, y) => (x < 80 ? [90, 90, 90] : [soft(x, y), 100, 100]))).join()).toContain(
      "exactly flat",
    );
    expect(warnings(paint((x, y) => [x < 60 ? 255 : soft(x, y) + noise(x, y), 130, 120])).join()).toContain(
      "saturated",
    );
    expect(warnings(paint((x, y) => [soft(x, y) + 60, soft(y, x) - 60, 120])).join()).toContain("colours");
    expect(pictureCheck(createPicture(64, 64)).warnings.join()).toContain("flat");
  });
});

describe("what is typed", () => {
  it("reads steps and sides", () => {
    expect(parseSteps("0,5,10-12")).toEqual([0, 5, 10, 11, 12]);
    for (const text of ["", "a", "5-3", "-1", "1,,2"])
      expect(() => parseSteps(text)).toThrow(/--steps: expected/);
    expect(parseSide("cpu,dtype=bf16,threads=1,batch=4,isa=portable")).toEqual({
      label: "cpu,dtype=bf16,threads=1,batch=4,isa=portable",
      device: "cpu",
      dtype: "bf16",
      batch: 4,
      options: { threads: 1, isa: "portable" },
    });
    for (const text of ["", "cpu,dtype=f8", "cpu,batch=0", "cpu,threads", "CPU"])
      expect(() => parseSide(text)).toThrow(/^side/);
  });

  it("seedAll fixes every generator and puts everything back", () => {
    const config = () =>
      completeConfig({ model: { path: "m" }, prompts: ["a"], rewards: [{ type: "clip" }] });
    const random = Math.random;
    const first = (() => {
      using seeded = seedAll(7);
      expect(config().seed).toBe(7);
      expect(process.env.HCCL_DETERMINISTIC).toBe("strict");
      expect(checkDeviceOptions("ascend:0", {}).determinism).toBe("strict");
      expect(checkDeviceOptions("ascend:0", { determinism: "off" }).determinism).toBe("off");
      expect(seeded.environment.CLOSE_MATMUL_K_SHIFT).toBe("1");
      return [Math.random(), Math.random()];
    })();
    using _again = seedAll(7, { determinism: "run-to-run" });
    expect([Math.random(), Math.random()]).toEqual(first);
    expect(first[0]).not.toBe(first[1]);
    _again[Symbol.dispose]();
    expect(Math.random).toBe(random);
    expect(config().seed).toBe(42);
    expect(process.env.HCCL_DETERMINISTIC).toBeUndefined();
    expect(() => seedAll(-1)).toThrow(/seed: expected/);
  });
});
