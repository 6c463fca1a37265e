// The command line, in this process: what is said where, exit statuses, results of every command.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { main } from "../lib/commands/main.js";
import { PieceClock } from "../lib/commands/pace.js";
import { parseBytes } from "../lib/commands/plan.js";
import { ProgressLine } from "../lib/commands/progress.js";
import { TrainingClock } from "../lib/commands/training_clock.js";
import type { TrainConfig } from "../lib/grpo/config.js";
import { createPicture, encodePngSync } from "../lib/image/index.js";
import { testFolder } from "./support/device.js";
import { writeSmallPipeline } from "./support/pipeline.js";

const folder = testFolder();
const model = join(folder, "model");
const at = (...names: string[]) => join(folder, ...names);

interface Result {
  status: number;
  out: string;
  error: string;
}

async function run(...argv: string[]): Promise<Result> {
  const result: Result = { status: 0, out: "", error: "" };
  const stdout = {
    write: (text: string) => {
      result.out += text;
    },
  };
  const stderr = {
    isTTY: false,
    write: (text: string) => {
      result.error += text;
    },
  };
  result.status = await main(argv, { stdout, stderr });
  return result;
}

/** Everything on stdout as JSON, line by line. */
const lines = ({ out }: Result) =>
  out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

const REDNESS = `export default (pictures) => pictures.map(({ data }) => {
  let sum = 0;
  for (let i = 0; i < data.length; i += 3) sum += data[i] - data[i + 2];
  return sum / data.length;
});`;

const CONFIG = {
  model: { path: "model", dtype: "f32" },
  prompts: ["a bad cab", "fig", "lemon"],
  groupSize: 4,
  iterations: 2,
  sampling: { width: 16, height: 16, steps: 3, batch: 4 },
  learning: { learningRate: 1e-3, accumulate: 4, microbatch: 2, clipRange: 0.1 },
  rewards: [{ type: "module", name: "red", path: "red.mjs" }],
  evaluation: { every: 2, prompts: ["peach", "plum"], steps: 2, save: 2 },
  output: { folder: "run" },
};

beforeAll(() => {
  writeSmallPipeline(model);
  writeFileSync(at("red.mjs"), REDNESS);
  writeFileSync(at("train.json"), JSON.stringify(CONFIG));
});

describe("usage", () => {
  it.each(["doctor", "train", "sample", "score", "report", "plan", "build"])(
    "%s --help has an example",
    async (command) => {
      const { status, out, error } = await run(command, "--help");
      expect([status, error]).toEqual([0, ""]);
      expect(out).toContain("Examples:\n");
      expect(out).toContain(`danceflux ${command}`);
      expect(out).toContain("--json");
    },
  );

  it("tells the version, and the commands when asked for nothing", async () => {
    expect((await run("--version")).out).toMatch(/^\d+\.\d+\.\d+\n$/);
    const { status, out, error } = await run();
    expect([status, out]).toEqual([2, ""]);
    expect(error).toContain("Commands:");
  });

  it.each<[string[], string]>([
    [["trian"], "danceflux: unknown command 'trian'\n  the nearest is train\n"],
    [["train", "x.json", "--sett", "a=1"], "danceflux: unknown option '--sett'\n  the nearest is --set\n"],
    [["doctor", "--jsn"], "danceflux: unknown option '--jsn'\n  the nearest is --json\n"],
    [["train"], "danceflux: missing required argument 'config'\n  see danceflux train --help\n"],
    [
      ["sample", "m", "--size", "64"],
      'danceflux: --size: expected WIDTHxHEIGHT such as 1024x768, got "64"\n',
    ],
    [
      ["sample", "m", "--steps", "many"],
      'danceflux: --steps: expected a whole number of 1 or more, got "many"\n',
    ],
    [
      ["sample", "m", "--kind", "euler"],
      'danceflux: --kind: expected one of ode, dance-sde, flow-sde, cps, got "euler"\n',
    ],
    [["sample", "m", "--dtype", "f8"], 'danceflux: --dtype: expected one of f32, bf16, f16, got "f8"\n'],
    [["sample", "m"], "danceflux: expected a prompt, got none\n  use --prompt TEXT or --prompts FILE\n"],
    [
      ["score", "a.png", "--prompt", "x"],
      "danceflux: expected a reward, got none\n  use --reward TYPE=PATH or --config FILE\n",
    ],
  ])("%j is wrong usage", async (argv, message) => {
    expect(await run(...argv)).toEqual({ status: 2, out: "", error: message });
  });

  it("with --json an error is JSON on stdout, and words on stderr", async () => {
    const result = await run("report", at("nowhere"), "--json");
    expect(result.status).toBe(1);
    expect(lines(result)).toEqual([
      { error: expect.objectContaining({ code: "ERR_FILE", hint: expect.any(String) }) },
    ]);
    expect(result.error).toContain("danceflux: ");
    const usage = await run("doctor", "--jso", "--json");
    expect(lines(usage)[0].error).toMatchObject({ code: "ERR_USAGE" });
  });
});

describe("doctor", () => {
  it("tells versions, machine, engine and backends", async () => {
    const { status, out } = await run("doctor");
    expect(status).toBe(0);
    for (const part of ["danceflux", "Node-API", "glibc", "addon", "memory", "threads"])
      expect(out).toContain(part);
    expect(out).toMatch(/ready\s+cpu/);
  });

  it("as JSON", async () => {
    const result = await run("doctor", "--json");
    const [found] = lines(result);
    expect(found.addon).toMatchObject({ loaded: true });
    expect(found.nodeApi.offered).toBeGreaterThanOrEqual(found.nodeApi.needed);
    expect(found.backends.find(({ name }: { name: string }) => name === "cpu")).toMatchObject({
      state: "READY",
    });
    expect(found.backends.find(({ name }: { name: string }) => name === "cuda").message).not.toBe("");
  });
});

describe("train", () => {
  it("leaves a run folder with summary and report, and tells before and after", async () => {
    const result = await run("train", at("train.json"));
    expect(result.error).toBe("");
    expect(result.status).toBe(0);
    expect(result.out).toMatch(/^finished after 2 iterations, /);
    expect(result.out).toMatch(/red +-?[\d.e-]+ -> -?[\d.e-]+/);
    const summary = JSON.parse(readFileSync(at("run", "summary.json"), "utf8"));
    expect(summary).toMatchObject({ measured: "evaluation", iterations: 2 });
    expect(summary.before.reward).toBe(summary.before.red);
    expect(summary.after.reward).not.toBe(summary.before.reward);
    expect(summary.seconds).toBeGreaterThan(0);
    expect(readFileSync(at("run", "report.html"), "utf8")).toContain("<figcaption>peach</figcaption>");
    expect(existsSync(at("run", "final", "transformer", "config.json"))).toBe(true);
  });

  it("as JSON: an object for everything that happens", async () => {
    const result = await run("train", at("train.json"), "--json", "--set", `output.folder=${at("json")}`);
    const all = lines(result);
    expect(all.map(({ type }) => type)).toEqual([
      "evaluation",
      "iteration",
      "evaluation",
      "iteration",
      "summary",
    ]);
    expect(all.at(-1)).toMatchObject({ type: "summary", finished: true, folder: at("json"), iterations: 2 });
    expect(all.filter(({ type }) => type === "iteration").map(({ iteration }) => iteration)).toEqual([1, 2]);
    expect(result.error).toBe("");
  });

  it("goes on where a run ended, and says when there is nothing left", async () => {
    const folderOf = `output.folder=${at("longer")}`;
    const first = await run("train", at("train.json"), "--set", folderOf);
    expect(first.status).toBe(0);
    const again = await run("train", at("train.json"), "--json", "--set", folderOf, "--set", "iterations=3");
    expect(
      lines(again)
        .filter(({ type }) => type === "iteration")
        .map(({ iteration }) => iteration),
    ).toEqual([3]);
  });

  it("refuses a folder that holds something else, and leaves it alone", async () => {
    const before = readFileSync(at("run", "report.html"), "utf8");
    const result = await run("train", at("train.json"), "--set", "seed=9");
    expect(result.status).toBe(1);
    expect(result.error).toContain("it holds a run with other options");
    expect(readFileSync(at("run", "report.html"), "utf8")).toBe(before);
  });

  it("counts an unknown option as wrong usage", async () => {
    const result = await run("train", at("train.json"), "--set", "learning.clipRang=1");
    expect(result).toMatchObject({ status: 2, out: "" });
    expect(result.error).toContain("the nearest is learning.clipRange");
  });

  it("warns of a checkpoint that cannot be read, and goes on from the one before", async () => {
    const change = ["--set", `output.folder=${at("spoiled")}`, "--set", "output.checkpointEvery=1"];
    expect((await run("train", at("train.json"), ...change)).status).toBe(0);
    writeFileSync(at("spoiled/checkpoints/000002/trainer.json"), "");
    const { status, error } = await run("train", at("train.json"), ...change);
    expect(status).toBe(0);
    expect(error).toMatch(/^danceflux: checkpoint 2 is skipped for 1: .*trainer\.json: cannot be read/);
    expect(readdirSync(at("spoiled/checkpoints"))).toContain("000002");
  });

  it("warns of a reward that is not required and fails, and goes on", async () => {
    writeFileSync(at("fails.mjs"), 'export default () => { throw new Error("no luck"); };');
    const extra = JSON.stringify([
      ...CONFIG.rewards,
      { type: "module", name: "luck", path: at("fails.mjs"), required: false },
    ]);
    const settings = [
      "--set",
      `rewards=${extra.replace("red.mjs", at("red.mjs"))}`,
      "--set",
      `output.folder=${at("warned")}`,
    ];
    const result = await run("train", at("train.json"), "--json", ...settings);
    expect(result.status).toBe(0);
    expect(result.error).toContain("danceflux: luck: it failed: no luck");
    const iteration = lines(result).find(({ type }) => type === "iteration");
    expect(iteration).toMatchObject({ rewardFailures: 4, rewards: { luck: 0 } });
    expect(readFileSync(at("warned", "report.html"), "utf8")).toContain("8 scores are missing");
  });

  it("ends with the reward's words when a required one fails; what was measured stays", async () => {
    const rewards = JSON.stringify([{ type: "module", path: at("fails.mjs") }]);
    const result = await run(
      "train",
      at("train.json"),
      "--set",
      `rewards=${rewards}`,
      "--set",
      `output.folder=${at("failed")}`,
    );
    expect(result.status).toBe(1);
    expect(result.error).toContain("danceflux: module: it failed: no luck");
  });
});

describe("sample", () => {
  const size = ["--size", "16x16", "--steps", "2"];

  it("draws one picture into a file, the same for the same seed", async () => {
    const draw = (file: string, ...more: string[]) =>
      run("sample", model, "--prompt", "fig", ...size, "--out", at(file), ...more);
    expect(await draw("one.png")).toEqual({ status: 0, out: `${at("one.png")}  fig\n`, error: "" });
    await draw("two.png");
    await draw("three.png", "--seed", "1");
    const bytes = (file: string) => readFileSync(at(file)).toString("base64");
    expect(bytes("two.png")).toBe(bytes("one.png"));
    expect(bytes("three.png")).not.toBe(bytes("one.png"));
  });

  it("draws several into a folder, and refuses a file for them", async () => {
    const many = ["--prompt", "fig", "--prompt", "plum", "--count", "2", ...size];
    const result = await run("sample", model, ...many, "--batch", "3", "--out", at("many"), "--json");
    expect(
      lines(result)[0].pictures.map(({ prompt, sample }: { prompt: string; sample: number }) => [
        prompt,
        sample,
      ]),
    ).toEqual([
      ["fig", 0],
      ["fig", 1],
      ["plum", 0],
      ["plum", 1],
    ]);
    expect(readdirSync(at("many"))).toEqual(["0000.png", "0001.png", "0002.png", "0003.png"]);
    expect(readFileSync(at("many", "0000.png")).equals(readFileSync(at("one.png")))).toBe(true);
    const refused = await run("sample", model, ...many, "--out", at("x.png"));
    expect(refused).toMatchObject({
      status: 2,
      error: expect.stringContaining("--out: expected a folder for 4 pictures"),
    });
  });

  it("draws from a finished run what its last evaluation showed", async () => {
    const prompts = ["--prompt", "peach", "--prompt", "plum", "--seed", "42"];
    expect((await run("sample", at("run"), ...prompts, "--out", at("again"))).error).toBe("");
    const evaluation = at("run", "evaluation", "000002");
    for (const file of ["0000.png", "0001.png"]) {
      expect(readFileSync(at("again", file)).equals(readFileSync(join(evaluation, file)))).toBe(true);
    }
    const base = await run("sample", model, ...prompts, ...size, "--shift", "3", "--out", at("base"));
    expect(base.status).toBe(0);
    expect(readFileSync(at("base", "0000.png")).equals(readFileSync(at("again", "0000.png")))).toBe(false);
  });

  it("draws from a run with timesteps in bf16 what it showed", async () => {
    const compat = { bf16Timesteps: true };
    const output = { folder: "bf16" };
    writeFileSync(at("bf16.json"), JSON.stringify({ ...CONFIG, compat, output }));
    expect((await run("train", at("bf16.json"))).status).toBe(0);
    const draw = async (out: string) => {
      const drawn = await run("sample", at("bf16"), "--prompt", "peach", "--seed", "42", "--out", at(out));
      expect(drawn.error).toBe("");
      return readFileSync(at(out)).toString("base64");
    };
    const shown = readFileSync(at("bf16", "evaluation", "000002", "0000.png")).toString("base64");
    expect(await draw("bf16.png")).toBe(shown);
    const kept = JSON.parse(readFileSync(at("bf16", "config.json"), "utf8"));
    kept.config.compat.bf16Timesteps = false;
    writeFileSync(at("bf16", "config.json"), JSON.stringify(kept));
    expect(await draw("f32.png")).not.toBe(shown);
  });

  it("says what is wrong with a size or a folder", async () => {
    const wrong = await run("sample", model, "--prompt", "fig", "--size", "17x16");
    expect(wrong).toMatchObject({
      status: 2,
      error: expect.stringContaining("width: expected a multiple of 8 pixels, got 17"),
    });
    expect(await run("sample", at("none"), "--prompt", "fig")).toMatchObject({
      status: 1,
      error: expect.stringContaining("expected a folder with a FLUX pipeline"),
    });
  });
});

describe("score", () => {
  const picture = (name: string, color: number[]) => {
    const data = Uint8Array.from({ length: 4 * 4 * 3 }, (_, i) => color[i % 3]!);
    writeFileSync(at(name), encodePngSync(createPicture(4, 4, data)));
    return at(name);
  };
  const reward = ["--reward", JSON.stringify({ type: "module", name: "red", path: at("red.mjs") })];

  it("tells a number per picture and reward", async () => {
    const pictures = [picture("r.png", [90, 0, 0]), picture("b.png", [0, 0, 90])];
    const result = await run("score", ...pictures, "--prompt", "a", ...reward, "--json");
    expect(lines(result)[0].pictures).toEqual([
      { picture: pictures[0], prompt: "a", scores: { red: 30 } },
      { picture: pictures[1], prompt: "a", scores: { red: -30 } },
    ]);
    const table = await run("score", ...pictures, "--prompt", "a", "--prompt", "b", ...reward);
    expect(table.out).toBe(`red  picture\n 30  ${pictures[0]}\n-30  ${pictures[1]}\n`);
  });

  it("takes the rewards of a configuration", async () => {
    const result = await run(
      "score",
      picture("g.png", [0, 9, 0]),
      "--prompt",
      "a",
      "--config",
      at("train.json"),
      "--json",
    );
    expect(lines(result)[0].pictures[0].scores).toEqual({ red: 0 });
  });

  it("wants one prompt, or one per picture", async () => {
    const result = await run("score", at("r.png"), "--prompt", "a", "--prompt", "b", ...reward);
    expect(result).toMatchObject({
      status: 2,
      error: expect.stringContaining("expected one prompt or 1, one per picture, got 2"),
    });
  });
});

describe("report", () => {
  it("is written where it is told", async () => {
    const result = await run("report", at("run"), "--out", at("page.html"), "--json");
    expect(lines(result)[0]).toMatchObject({ report: at("page.html"), iterations: 2 });
    expect(readFileSync(at("page.html"), "utf8")).toContain("<!doctype html>");
  });
});

describe("plan", () => {
  const DEV = {
    num_layers: 19,
    num_single_layers: 38,
    attention_head_dim: 128,
    num_attention_heads: 24,
    guidance_embeds: true,
  };
  const config = () => {
    mkdirSync(at("dev/transformer"), { recursive: true });
    writeFileSync(at("dev/transformer/config.json"), JSON.stringify(DEV));
    return at("dev/transformer/config.json");
  };

  it("tells the memory of a run, models and stages", async () => {
    const { status, out, error } = await run("plan", at("train.json"));
    expect([status, error]).toEqual([0, ""]);
    for (const part of ["one of 1 rank", "weights", "gradients", "optimizer", "update", "peak"])
      expect(out).toContain(part);
    expect(out).not.toContain("as published"); // everything is at hand
    const [json] = lines(await run("plan", at("train.json"), "--json"));
    expect(json).toMatchObject({
      world: 1,
      sharding: "none",
      deviceMemory: null,
      textTokens: 12,
      suggestions: [],
    });
    expect(json.fits).toBeUndefined();
    expect(existsSync(at("run", "plan"))).toBe(false);
  });

  it("works from a transformer's configuration alone, and judges", async () => {
    const args = [
      "plan",
      config(),
      "--set",
      "device.name=ascend",
      "--world",
      "8",
      "--device-memory",
      "64GiB",
    ];
    const fitting = await run(...args, "--sharding", "optimizer+gradients");
    expect([fitting.status, fitting.error]).toEqual([0, ""]);
    expect(fitting.out).toContain("11.9 billion parameters, matrices in bf16");
    expect(fitting.out).toContain("one of 8 shares");
    expect(fitting.out).toContain("it fits in 64 GiB");
    expect(fitting.out).toContain("second text encoder (as published)");
    const [json, ...rest] = lines(await run(...args, "--json"));
    expect(rest).toEqual([]);
    expect(json).toMatchObject({ fits: false, parameters: { all: 11_901_408_320 } });
    expect(json.suggestions.at(-1)).toMatchObject({ change: "--sharding optimizer+gradients", fits: true });
    const tight = await run(...args);
    expect(tight.status).toBe(1);
    expect(tight.out).toContain("it does not fit in 64 GiB");
    expect(tight.out).toMatch(
      /--sharding optimizer: .* GiB\n {2}--sharding optimizer\+gradients: .* GiB, fits/,
    );
  });

  it("takes the sizes of a model that is not at hand from --model-config", async () => {
    const change = ["--set", `model.path=${at("nowhere")}`];
    const missing = await run("plan", at("train.json"), ...change);
    expect(missing.status).toBe(1);
    expect(missing.error).toContain("--model-config");
    const told = await run("plan", at("train.json"), ...change, "--model-config", config());
    expect([told.status, told.error]).toEqual([0, ""]);
    expect(told.out).toContain("11.9 billion");
  });

  it.each<[string[], string]>([
    [["--device-memory", "much"], '--device-memory: expected a size such as 64GiB, got "much"'],
    [["--device-memory", "-1GiB"], '--device-memory: expected a size such as 64GiB, got "-1GiB"'],
    [["--world", "0"], '--world: expected a whole number of 1 or more, got "0"'],
    [
      ["--world", "2", "--sharding", "all"],
      '--sharding: expected one of none, optimizer, optimizer+gradients, got "all"',
    ],
    [["--sharding", "optimizer"], '--sharding: expected none with one rank, got "optimizer"'],
  ])("%j is wrong usage", async (argv, message) => {
    const { status, out, error } = await run("plan", at("train.json"), ...argv);
    expect([status, out]).toEqual([2, ""]);
    expect(error).toContain(`danceflux: ${message}\n`);
  });

  it("reads sizes in both kinds of units", () => {
    const sizes = ["64GiB", "80 GB", "1024", "1.5mib"].map((text) => parseBytes("size", text));
    expect(sizes).toEqual([64 * 2 ** 30, 80e9, 1024, 1.5 * 2 ** 20]);
  });
});

describe("the progress line", () => {
  const terminal = (columns = 40) => {
    const written: string[] = [];
    return { written, isTTY: true, columns, write: (text: string) => written.push(text) };
  };

  it("is one line that is drawn over, no wider than the terminal", () => {
    const stream = terminal(10);
    const line = new ProgressLine(stream);
    line.update("a very long line");
    line.update("too soon");
    line.say("kept");
    line.clear();
    expect(stream.written).toEqual([
      "\r\u001b[2Ka very l\u2026",
      "\r\u001b[2Kkept\n",
      "\r\u001b[2Ktoo soon",
      "\r\u001b[2K",
    ]);
  });

  it("is quiet when nobody watches", () => {
    const stream = { ...terminal(), isTTY: false };
    const line = new ProgressLine(stream);
    line.update("x");
    line.note("x");
    line.clear();
    line.say("warning");
    expect(stream.written).toEqual(["warning\n"]);
  });

  it("tells how long it will take, evaluations included", () => {
    let now = 0;
    const config = { iterations: 10, evaluation: { every: 4 } } as TrainConfig;
    const clock = new TrainingClock(config, () => now);
    const progress = (iteration: number, stage: "rollout" | "update" | "evaluate", done: number) => ({
      iteration,
      stage,
      done,
      all: 8,
    });
    expect(clock.secondsLeft()).toBeUndefined();
    clock.evaluation(30);
    clock.progress(progress(1, "rollout", 0));
    clock.iteration(1, 20);
    clock.iteration(2, 40);
    // 8 iterations of 30 s, evaluations after the 4th, 8th and 10th.
    expect(clock.secondsLeft()).toBe(8 * 30 + 3 * 30);
    now = 100;
    clock.progress(progress(3, "rollout", 0));
    now = 110;
    expect(clock.secondsLeft()).toBe(8 * 30 - 10 + 3 * 30);
    expect(clock.line(progress(3, "update", 4))).toBe(
      "iteration 3/10 \u00b7 update 4/8 \u00b7 30 s each \u00b7 5 min 20 s left",
    );
    // The evaluation after iteration 4, before the numbers of that iteration come.
    clock.iteration(3, 30);
    clock.progress(progress(4, "rollout", 0));
    now = 200;
    clock.progress(progress(5, "evaluate", 1));
    expect(clock.secondsLeft()).toBe(6 * 30 + 2 * 30);
    expect(clock.line(progress(5, "evaluate", 1))).toMatch(/^iteration 4\/10 \u00b7 evaluate 1\/8/);
  });

  it("tells how long the rest of many pieces will take, by whole batches", () => {
    let now = 5;
    const clock = new PieceClock("drawing", 11, 4, () => now);
    expect(clock.line(0)).toBe("drawing 0/11");
    now += 40;
    for (const done of [1, 2, 3]) expect(clock.line(done)).toBe(`drawing ${done}/11`);
    expect(clock.line(4)).toBe("drawing 4/11 \u00b7 10 s each \u00b7 1 min 10 s left");
    now += 80;
    expect(clock.line(5)).toBe("drawing 5/11 \u00b7 10 s each \u00b7 1 min 0 s left");
    expect(clock.line(8)).toBe("drawing 8/11 \u00b7 15 s each \u00b7 45 s left");
    now += 12; // the last batch is not whole
    expect(clock.line(11)).toBe("drawing 11/11 \u00b7 12 s each \u00b7 0 s left");
  });

  it("forgets a pace that is long ago", () => {
    let now = 0;
    const clock = new PieceClock("scoring", 100, 1, () => now);
    for (let done = 1; done <= 30; done++) {
      now += done <= 20 ? 60 : 2;
      clock.line(done);
    }
    expect(clock.line(30)).toBe("scoring 30/100 \u00b7 2 s each \u00b7 2 min 20 s left");
  });

  it.each(["sample", "score"])("is what %s tells, with the rest", async (command) => {
    const stderr = terminal();
    const stdout = { write: () => {} };
    writeFileSync(at("seen.png"), encodePngSync(createPicture(4, 4, new Uint8Array(48))));
    const asked =
      command === "sample"
        ? ["sample", model, "--prompt", "fig", "--count", "2", "--size", "16x16", "--steps", "1"]
        : ["score", at("seen.png"), at("seen.png"), "--prompt", "fig"];
    const more = command === "sample" ? ["--out", at("seen")] : ["--config", at("train.json")];
    // Every look at the clock is a second later, so that no redraw is too soon.
    let looks = 1;
    vi.spyOn(performance, "now").mockImplementation(() => looks++ * 1000);
    try {
      expect(await main([...asked, ...more], { stdout, stderr })).toBe(0);
    } finally {
      vi.restoreAllMocks();
    }
    const what = command === "sample" ? "drawing" : "scoring";
    const text = stderr.written.join("");
    expect(text).toMatch(new RegExp(`${what} 0/2`));
    expect(text).toMatch(new RegExp(`${what} 1/2 \u00b7 .* each \u00b7 .* left`));
  });
});
