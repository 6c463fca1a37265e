// Configuration files: presets, changes, paths, and what is refused.
import { writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { defaults } from "../lib/grpo/config.js";
import { loadConfig, parseChange } from "../lib/load_config.js";
import { testFolder } from "./support/device.js";

const folder = testFolder();
let files = 0;

function write(value: unknown): string {
  const path = join(folder, `${files++}.json`);
  writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value));
  return path;
}

const SMALL = {
  model: { path: "model" },
  prompts: "prompts.txt",
  rewards: [{ type: "clip", path: "reward", tokenizer: "model" }],
};

describe("a configuration file", () => {
  it("is completed by the defaults; its paths are relative to it", async () => {
    const config = await loadConfig(
      write({
        ...SMALL,
        embeddingCache: "cache",
        evaluation: { every: 5, prompts: "held.txt", rewards: [{ type: "module", path: "check.mjs" }] },
        output: { folder: "../runs/one" },
      }),
    );
    const at = (path: string) => resolve(folder, path);
    expect(config.model.path).toBe(at("model"));
    expect(config.prompts).toBe(at("prompts.txt"));
    expect(config.embeddingCache).toBe(at("cache"));
    expect(config.evaluation.prompts).toBe(at("held.txt"));
    expect(config.output.folder).toBe(at("../runs/one"));
    expect(config.rewards).toEqual([{ type: "clip", path: at("reward"), tokenizer: at("model") }]);
    expect(config.evaluation.rewards![0]!.path).toBe(at("check.mjs"));
    expect(config.learning).toEqual(defaults.learning);
  });

  it("leaves prompts that are written out, addresses and absolute paths as they are", async () => {
    const rewards = [{ type: "http", path: "http://127.0.0.1:1/score" }];
    const config = await loadConfig(
      write({ ...SMALL, rewards, prompts: ["a cat"], output: { folder: "/tmp/x" } }),
    );
    expect([config.prompts, config.rewards[0]!.path, config.output.folder]).toEqual([
      ["a cat"],
      rewards[0]!.path,
      "/tmp/x",
    ]);
  });

  it("starts from a preset", async () => {
    const config = await loadConfig(
      write({ ...SMALL, preset: "dancegrpo-8gpu", learning: { accumulate: 6 } }),
    );
    expect(config.learning).toMatchObject({ accumulate: 6, clipNorm: 0.01, emaDecay: 0.995 });
  });

  it("ships one for the demo that can be read", async () => {
    const path = new URL("../models/tiny-shapes/demo.json", import.meta.url).pathname;
    const config = await loadConfig(path);
    expect(config.output.folder).toBe(resolve(dirname(path), "../../runs/demo"));
    expect(config.evaluation.rewards!.map(({ name, type }) => name ?? type)).toContain("attributes");
  });
});

describe("changes", () => {
  it.each([
    ["a.b=3", { name: "a.b", value: 3 }],
    ["a=text", { name: "a", value: "text" }],
    ["a=[1,2]", { name: "a", value: [1, 2] }],
    ["a=x=y", { name: "a", value: "x=y" }],
    ["a=", { name: "a", value: "" }],
  ])("%s", (text, change) => expect(parseChange(text)).toEqual(change));

  it("are refused when they are none", () => {
    for (const text of ["a", "=3", "a..b=3", ".a=1"])
      expect(() => parseChange(text)).toThrow("--set: expected NAME=VALUE");
  });

  it("win over the file; their paths are relative to the current folder", async () => {
    const config = await loadConfig(write(SMALL), [
      "learning.learningRate=2e-5",
      "learning.lora.rank=4",
      "learning.lora.alpha=8",
      'learning.lora.targets=["to_q"]',
      "output.folder=runs/there",
      "rewards.0.weight=2",
      "rewards.0.path=elsewhere",
    ]);
    expect(config.learning.learningRate).toBe(2e-5);
    expect(config.learning.lora).toEqual({ rank: 4, alpha: 8, targets: ["to_q"] });
    expect(config.output.folder).toBe(resolve("runs/there"));
    expect(config.rewards[0]).toMatchObject({
      weight: 2,
      path: resolve("elsewhere"),
      tokenizer: join(folder, "model"),
    });
  });

  it.each<[string, string, string]>([
    [
      "learning.learningrate=1",
      "config: learning.learningrate: expected a known option",
      "the nearest is learning.learningRate",
    ],
    ["groupSize=1", "config: groupSize: expected a whole number of 2 or more, got 1", ""],
    ["rewards.3.weight=1", "--set: rewards.3.weight: expected 3 to hold options, got none", ""],
    ["seed.x=1", "config: seed: expected a whole number of 0 or more", ""],
    ["__proto__.polluted=1", "config: __proto__: expected a known option", ""],
    ["rewards.0.weight=heavy", 'config: rewards[0]: weight: expected a number, got "heavy"', ""],
    ["rewards.0.pth=x", "config: rewards[0]: pth: expected a known option", "the nearest is path"],
    [
      "rewards.0.type=clap",
      'config: rewards[0]: type: expected one of hps-v2.1, pickscore, clip, http, module, got "clap"',
      "the nearest is clip",
    ],
    [
      "learning.mixture=product",
      'config: learning.mixture: expected one of "sum", "per-reward", got "product"',
      "",
    ],
  ])("%s is refused", async (change, message, hint) => {
    const error = await loadConfig(write(SMALL), [change]).catch((reason) => reason);
    expect(error.code).toBe("ERR_OPTION");
    expect(error.message).toContain(message);
    if (hint) expect(error.hint).toContain(hint);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });
});

describe("a file that is no configuration", () => {
  it.each<[string, unknown, string, string]>([
    ["broken JSON", "{", "ERR_OPTION", "expected JSON"],
    ["a list", [], "ERR_OPTION", "expected a JSON object"],
    [
      "one without a model",
      { prompts: ["a"], rewards: [{ type: "clip" }] },
      "ERR_OPTION",
      "config: model.path: expected a value, got undefined",
    ],
    [
      "one whose reward is a text",
      { ...SMALL, rewards: ["clip"] },
      "ERR_OPTION",
      'config: rewards[0]: expected an object with type, got "clip"',
    ],
  ])("%s is refused", async (_, value, code, message) => {
    const error = await loadConfig(write(value)).catch((reason) => reason);
    expect(error).toMatchObject({ code });
    expect(error.message).toContain(message);
  });

  it("one that is not there is refused", async () => {
    await expect(loadConfig(join(folder, "nowhere.json"))).rejects.toMatchObject({ code: "ERR_FILE" });
  });
});
