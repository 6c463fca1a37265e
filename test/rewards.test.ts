// Rewards against their contracts: what loadReward refuses, functions and modules, the scorer, mixtures.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { mixedAdvantages } from "../lib/grpo/advantage.js";
import { functionReward, loadReward, loadRewards, type RewardConfig } from "../lib/rewards/index.js";
import {
  appendScores,
  fillMissing,
  missingScores,
  mixture,
  type RewardScores,
  scoreAll,
} from "../lib/rewards/scorer.js";
import { testDevice, testFolder } from "./support/device.js";
import { flat, requestOf } from "./support/pictures.js";

const device = testDevice();
const folder = testFolder();

const expectClose = (actual: readonly number[], wanted: readonly number[], digits = 6): void => {
  for (const [i, value] of wanted.entries()) expect(actual[i]).toBeCloseTo(value, digits);
};

describe("loadReward", () => {
  it.each<[string, unknown, string]>([
    [
      "an unknown type",
      "clipp",
      'clipp: type: expected one of hps-v2.1, pickscore, clip, http, module, got "clipp"',
    ],
    ["an unknown option", { type: "clip", time100: true }, "clip: time100: expected a known option"],
    [
      "a wrong value",
      { type: "pickscore", scale: 3 },
      'pickscore: scale: expected one of "cosine", "logit", got 3',
    ],
    ["a weight that is no number", { type: "clip", weight: "1" }, 'clip: weight: expected a number, got "1"'],
    ["http without an address", { type: "http" }, "http: path: expected an address, got none"],
    [
      "http with a file",
      { type: "http", path: "file:///etc/passwd" },
      "expected an address with http or https",
    ],
    [
      "http with a password",
      { type: "http", path: "http://a:b@localhost" },
      "expected an address without a password",
    ],
    ["a module without a path", { type: "module" }, "module: path: expected a path, got none"],
  ])("refuses %s", async (_, config, message) => {
    await expect(loadReward(config as RewardConfig, { device })).rejects.toThrow(message);
  });

  it("names the nearest option", async () => {
    const error = await loadReward({ type: "clip", time100: true }, { device }).catch((reason) => reason);
    expect(error).toMatchObject({ code: "ERR_OPTION", hint: "the nearest is times100" });
  });

  it("refuses two rewards of one name", async () => {
    const twice = loadRewards(
      [
        { type: "http", path: "http://localhost" },
        { type: "module", name: "http", path: "x" },
      ],
      { device },
    );
    await expect(twice).rejects.toThrow("rewards[1]: name: expected a name of its own, got http twice");
  });

  it("says which model is missing", async () => {
    await expect(loadReward("hps-v2.1", { device, baseFolder: folder })).rejects.toMatchObject({
      code: "ERR_FILE",
    });
  });
});

describe("functions and modules", () => {
  const pictures = [flat([10, 10, 10]), flat([30, 30, 30])];
  const write = (name: string, text: string) => {
    writeFileSync(join(folder, name), text);
    return name;
  };
  const load = (file: string, more: Record<string, unknown> = {}) =>
    loadReward({ type: "module", name: "mine", path: file, ...more }, { device, baseFolder: folder });

  it("a function gets pictures, prompts and the iteration", async () => {
    using reward = functionReward("mean", (shown, prompts, { iteration }) =>
      shown.map((picture, i) => picture.data[0]! + prompts[i]!.length + iteration),
    );
    using request = await requestOf(device, pictures, ["a", "abc"]);
    expect(await reward.score(request)).toEqual([10 + 1 + 7, 30 + 3 + 7]);
  });

  it("a module may export a function, a factory of one, or a factory of a whole reward", async () => {
    using request = await requestOf(device, pictures, ["a", "b"]);
    const plain = write("plain.mjs", "export default (pictures) => pictures.map((p) => p.data[0]);");
    expect(await (await load(plain)).score(request)).toEqual([10, 30]);
    const factory = write(
      "factory.mjs",
      "export default { create: ({ factor }) => (pictures) => pictures.map((p) => factor * p.data[0]) };",
    );
    expect(await (await load(factory, { factor: 3 })).score(request)).toEqual([30, 90]);
    const whole = write(
      "whole.mjs",
      `let disposed = 0;
       export default { create: () => ({ score: async ({ prompts }) => prompts.map(() => disposed), dispose: () => disposed++ }) };`,
    );
    const reward = await load(whole);
    reward.dispose();
    expect(reward.name).toBe("mine");
    expect(await reward.score(request)).toEqual([1, 1]);
  });

  it("says what is wrong with a module", async () => {
    await expect(load("nowhere.mjs")).rejects.toThrow(/nowhere\.mjs: cannot be read \(ENOENT/);
    await expect(load(write("syntax.mjs", "export default ("))).rejects.toThrow("it does not load");
    await expect(load(write("number.mjs", "export default 3;"))).rejects.toThrow(
      "expected a default export that is a function or has create(options), got 3",
    );
    const throwing = write("throws.mjs", 'export default { create() { throw new Error("no key"); } };');
    await expect(load(throwing)).rejects.toThrow("create: no key");
    await expect(load(write("answers.mjs", "export default { create: () => 5 };"))).rejects.toThrow(
      "expected create() to answer a function or a reward, got 5",
    );
  });
});

describe("the scorer", () => {
  const two = [flat([10, 10, 10]), flat([30, 30, 30])];
  const one = (score: () => number[]) => ({ reward: functionReward("mine", score), weight: 1 });

  it.each<[string, () => number[], string]>([
    [
      "throws",
      () => {
        throw new Error("no luck");
      },
      "mine: it failed: no luck",
    ],
    ["answers too few", () => [1], "mine: expected 2 scores, got 1"],
    ["answers nothing", () => undefined as unknown as number[], "mine: expected 2 scores, got none"],
    ["answers NaN", () => [1, Number.NaN], "mine: expected finite scores, got NaN for picture 1"],
  ])("ends with ERR_REWARD when a reward %s; unless it is not required", async (_, score, message) => {
    using request = await requestOf(device, two, ["a", "b"]);
    await expect(scoreAll([one(score)], request)).rejects.toMatchObject({ code: "ERR_REWARD", message });
    const [scores] = await scoreAll([{ ...one(score), required: false }], request);
    expect(scores).toMatchObject({ scores: [Number.NaN, Number.NaN], failures: [message] });
  });

  it("does not wait for a reward of the user's that heeds no abort", async () => {
    const path = join(folder, "never.mjs");
    writeFileSync(path, "export default { create: () => ({ score: () => new Promise(() => {}) }) };");
    using written = await loadReward({ type: "module", path }, { device });
    for (const reward of [functionReward("mine", () => new Promise<number[]>(() => {})), written]) {
      using request = await requestOf(device, two, ["a", "b"]);
      const controller = new AbortController();
      const scores = scoreAll([{ reward, weight: 1 }], { ...request, signal: controller.signal });
      controller.abort(new Error("enough"));
      await expect(scores).rejects.toThrow("enough");
      await expect(
        scoreAll([{ reward, weight: 1 }], { ...request, signal: controller.signal }),
      ).rejects.toThrow("enough");
    }
  });

  it("an abort is no failure of the reward", async () => {
    using request = await requestOf(device, two, ["a", "b"]);
    const controller = new AbortController();
    const reward = functionReward("mine", async () => {
      controller.abort(new Error("enough"));
      controller.signal.throwIfAborted();
      return [];
    });
    const scores = scoreAll([{ reward, weight: 1, required: false }], {
      ...request,
      signal: controller.signal,
    });
    await expect(scores).rejects.toThrow("enough");
  });

  const entry = (scores: number[], weight = 1, failures: string[] = []): RewardScores => ({
    name: "r",
    weight,
    scores,
    failures,
  });

  it("fills what is missing with the mean of the group, or zero", () => {
    const missing = entry([1, Number.NaN, 3, Number.NaN, Number.NaN], 1, ["gone"]);
    expect(missingScores([missing])).toBe(3);
    expect(fillMissing([missing], [0, 0, 0, 1, 1])[0]!.scores).toEqual([1, 2, 3, 0, 0]);
  });

  it("a failed batch moves no advantage of a mixture", () => {
    const steady = entry([0.2, 0.4, 0.9, 0.1], 1);
    const half = entry([5, Number.NaN, 5, Number.NaN], 1, ["gone"]);
    const filled = fillMissing([steady, half], [0, 0, 0, 0]);
    const learning = { advantage: "group", mixture: "sum", clipAdvantage: 5 } as const;
    const alone = mixedAdvantages([steady], [0, 0, 0, 0], learning).values;
    expectClose(mixedAdvantages(filled, [0, 0, 0, 0], learning).values, alone);
  });

  it("appends batches reward by reward", () => {
    const all = appendScores([entry([1], 2)], [entry([2], 2, ["x"])]);
    expect(all).toEqual([{ name: "r", weight: 2, scores: [1, 2], failures: ["x"] }]);
    expect(mixture(all)).toEqual([2, 4]);
  });
});

describe("mixtures", () => {
  const groups = [0, 0, 0, 1, 1, 1];
  const small: RewardScores = {
    name: "small",
    weight: 0.7,
    failures: [],
    scores: [0.1, 0.2, 0.3, 0.5, 0.5, 0.5],
  };
  const large: RewardScores = {
    name: "large",
    weight: 1.4,
    failures: [],
    scores: [300, 100, 200, 10, 30, 20],
  };
  const learning = (how: "sum" | "per-reward") =>
    ({ advantage: "group", mixture: how, clipAdvantage: 5 }) as const;

  it("sum: the reward with the larger spread leads", () => {
    const { values } = mixedAdvantages([small, large], groups, learning("sum"));
    expectClose(values, [1, -1, 0], 2);
  });

  it("per-reward: each counts by its weight alone", () => {
    const { values, zeroVarianceGroups } = mixedAdvantages([small, large], groups, learning("per-reward"));
    // Group 0: small -1 0 1, large 1 -1 0; group 1: small says nothing.
    const wanted = [(-0.7 + 1.4) / 2.1, -1.4 / 2.1, 0.7 / 2.1, -1.4 / 2.1, 1.4 / 2.1, 0];
    expectClose(values, wanted);
    expect(zeroVarianceGroups).toBe(0);
  });

  it("per-reward: the scale of a reward does not matter", () => {
    const scaled = { ...large, scores: large.scores.map((score) => 1000 * score + 5) };
    const { values } = mixedAdvantages([small, scaled], groups, learning("per-reward"));
    expectClose(values, mixedAdvantages([small, large], groups, learning("per-reward")).values);
  });

  it("one reward of weight 1 is the same either way; a weight of 0 is only watched", () => {
    const single = [{ ...large, weight: 1 }];
    const sum = mixedAdvantages(single, groups, learning("sum"));
    expect(mixedAdvantages(single, groups, learning("per-reward"))).toEqual(sum);
    const watched = [...single, { ...small, weight: 0 }];
    expect(mixedAdvantages(watched, groups, learning("per-reward"))).toEqual(sum);
  });

  it("counts a group only when no reward tells its pictures apart, and clamps at the end", () => {
    const constant = { ...large, scores: [1, 1, 1, 2, 2, 2] };
    expect(mixedAdvantages([small, constant], groups, learning("per-reward")).zeroVarianceGroups).toBe(1);
    const tight = mixedAdvantages([large], groups, { ...learning("per-reward"), clipAdvantage: 0.5 });
    expect(Math.max(...tight.values)).toBe(0.5);
  });

  it("over the whole batch", () => {
    const { values } = mixedAdvantages([{ ...large, weight: 1 }], groups, {
      ...learning("per-reward"),
      advantage: "batch",
    });
    expect(values.reduce((sum, value) => sum + value, 0)).toBeCloseTo(0, 9);
    expect(values[0]).toBeGreaterThan(1);
  });
});
