// What a training run promises when things go wrong, stop half-way or go on: folders, checkpoints, rewards, pictures, exports.
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MetricsFile } from "../lib/grpo/metrics.js";
import type { TrainerOptions } from "../lib/grpo/trainer.js";
import { native } from "../lib/native.js";
import { testDevice, testFolder } from "./support/device.js";
import { brightness, checkpointsOf, endOf, rewardOf, SHORT, shortRun } from "./support/training.js";

const device = testDevice({ threads: 2 });
const folder = testFolder();
const model = join(folder, "model");
let runs = 0;
const newRun = () => join(folder, `run${runs++}`);

const train = (
  run: string,
  options: Partial<TrainerOptions> = {},
  more: Parameters<typeof shortRun>[3] = {},
) => shortRun(device, { model, run }, options, more);

/** A file with some content, its folder made. */
function put(path: string, content: string): string {
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, content);
  return path;
}

// The uninterrupted run that others are compared with.
let wholeRun: Promise<string> | undefined;
function whole(): Promise<string> {
  wholeRun ??= (async () => {
    const run = newRun();
    await train(run);
    return run;
  })();
  return wholeRun;
}

describe("the run folder", () => {
  it("is refused when it holds something else", async () => {
    const run = newRun();
    put(join(run, "notes.txt"), "mine");
    await expect(train(run)).rejects.toMatchObject({
      code: "ERR_OUTPUT",
      message: expect.stringContaining("expected an empty folder or a run"),
    });
    expect(readdirSync(run)).toEqual(["notes.txt"]);
  });

  it("is refused when it holds a run with other options, and named when that is gone", async () => {
    const run = await whole();
    await expect(train(run, { seed: 1 })).rejects.toMatchObject({
      code: "ERR_OUTPUT",
      message: `${run}: it holds a run with other options`,
      hint: expect.stringContaining("output.folder"),
    });
  });

  it("is refused when it is a file, or below one", async () => {
    const file = put(join(folder, "file"), "");
    for (const run of [file, join(file, "run")]) {
      await expect(train(run)).rejects.toMatchObject({
        code: "ERR_OUTPUT",
        message: expect.stringContaining("cannot be written"),
      });
    }
  });

  it("is refused when its configuration is somebody else's, which then stays as it was", async () => {
    for (const content of ['{"preset": "tiny-shapes"}', "null", "{", "[1]"]) {
      const run = newRun();
      const path = put(join(run, "config.json"), content);
      await expect(train(run), content).rejects.toMatchObject({ code: "ERR_OUTPUT" });
      expect(readFileSync(path, "utf8")).toBe(content);
    }
  });

  it("is one run's at a time", async () => {
    const run = newRun();
    let second: Promise<unknown> | undefined;
    const onIteration = () => {
      second ??= train(run).catch((error) => error);
    };
    await train(run, {}, { onIteration });
    expect(await second).toMatchObject({
      code: "ERR_OUTPUT",
      message: expect.stringContaining("in use by process"),
    });
    expect(existsSync(join(run, "lock"))).toBe(false);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("of a run that was refused before it began may be used with other options", async () => {
    const run = newRun();
    const lora = { rank: 2, alpha: 4, targets: ["to_nowhere"] };
    await expect(train(run, { learning: { ...SHORT.learning, lora } })).rejects.toThrow('got "to_nowhere"');
    await train(run, { iterations: 1 });
    expect(checkpointsOf(run)).toEqual(["000001"]);
  });
});

describe("what cannot be is told before anything is written", () => {
  const cases: [string, Partial<TrainerOptions>, string, string][] = [
    [
      "an empty prompt file",
      { prompts: put(join(folder, "empty.txt"), "\n \n") },
      "ERR_PROMPTS",
      "expected at least one prompt",
    ],
    ["no prompt file", { prompts: join(folder, "nowhere.txt") }, "ERR_PROMPTS", "cannot be read"],
    [
      "a prompt file of bytes",
      { prompts: put(join(folder, "odd.jsonl"), "{") },
      "ERR_PROMPTS",
      "odd.jsonl:1",
    ],
    [
      "no held-out prompts",
      { evaluation: { every: 1, prompts: join(folder, "nowhere.txt") } },
      "ERR_PROMPTS",
      "nowhere.txt",
    ],
    [
      "a size that is no whole number of tokens",
      { sampling: { ...SHORT.sampling, width: 30 } },
      "ERR_OPTION",
      "width: expected a multiple of 8",
    ],
  ];
  it.each(cases)("%s", async (_, options, code, message) => {
    const run = newRun();
    const before = native().liveHandles();
    await expect(train(run, options)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    });
    expect(existsSync(run)).toBe(false);
    expect(native().liveHandles()).toEqual(before);
  });

  it("more is refused with the trainer itself", async () => {
    await expect(train(newRun(), { learning: { ...SHORT.learning, accumulate: 3 } })).rejects.toThrow(
      "divisor of the 4 pictures",
    );
    const trainable = { ...SHORT.learning, trainable: ["nothing_like_it"] };
    await expect(train(newRun(), { learning: trainable })).rejects.toThrow(
      "expected patterns that name a parameter",
    );
  });
});

describe("a reward that fails", () => {
  const failing: [string, () => unknown, string][] = [
    [
      "throws",
      () => {
        throw new Error("no power");
      },
      "failing: it failed: no power",
    ],
    ["answers NaN", () => [1, 2, Number.NaN, 3], "failing: expected finite scores, got NaN for picture 2"],
    [
      "answers Infinity",
      () => [1, 2, 3, Number.POSITIVE_INFINITY],
      "expected finite scores, got Infinity for picture 3",
    ],
    ["answers too few", () => [1, 2, 3], "failing: expected 4 scores, got 3"],
    ["answers too many", () => [1, 2, 3, 4, 5], "expected 4 scores, got 5"],
    ["answers nothing", () => undefined, "expected 4 scores, got none"],
    ["answers words", () => ["a", "b", "c", "d"], "expected finite scores, got NaN for picture 0"],
  ];
  it.each(failing)(
    "because it %s ends the run and leaves its last checkpoint",
    async (_, answer, message) => {
      const run = newRun();
      const before = native().liveHandles();
      const reward = rewardOf("failing", async (request) =>
        request.iteration < 1 ? brightness.score(request) : (answer() as number[]),
      );
      await expect(train(run, { reward })).rejects.toMatchObject({
        code: "ERR_REWARD",
        message: expect.stringContaining(message),
      });
      expect(checkpointsOf(run)).toEqual(["000001"]);
      expect(existsSync(join(run, "final"))).toBe(false);
      expect(native().liveHandles()).toEqual(before);
    },
  );

  it("does not spoil what a resumed run computes", async () => {
    const run = newRun();
    let fails = true;
    const reward = rewardOf("brightness", async (request) => {
      if (fails && request.iteration === 1) throw new Error("for now");
      return brightness.score(request);
    });
    await expect(train(run, { reward })).rejects.toMatchObject({ code: "ERR_REWARD" });
    fails = false;
    const metrics = await train(run, { reward });
    expect(metrics.map(({ iteration }) => iteration)).toEqual([2, 3]);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });
});

describe("a run that is asked to stop", () => {
  async function stopIn(stage: "rollout" | "update", output = {}): Promise<string> {
    const run = newRun();
    const stop = new AbortController();
    await train(
      run,
      { output },
      {
        stop: stop.signal,
        onProgress: (progress) => {
          if (progress.iteration === 2 && progress.stage === stage && progress.done > 0) stop.abort();
        },
      },
    );
    return run;
  }

  it("gives up a rollout, keeps the iteration before, and ends with the same bits when it goes on", async () => {
    const run = await stopIn("rollout", { checkpointEvery: 0 });
    expect(checkpointsOf(run)).toEqual(["000001"]);
    const rest = await train(run, { output: { checkpointEvery: 0 } });
    expect(rest.map(({ iteration }) => iteration)).toEqual([2, 3]);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("finishes an update, and ends with the same bits when it goes on", async () => {
    const run = await stopIn("update", { checkpointEvery: 0 });
    expect(checkpointsOf(run)).toEqual(["000002"]);
    expect(existsSync(join(run, "final"))).toBe(false);
    await train(run);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("goes on with other batches to the same bits: those never matter", async () => {
    const run = await stopIn("update");
    await train(run, {
      sampling: { ...SHORT.sampling, batch: 1 },
      learning: { ...SHORT.learning, recompute: "all" },
    });
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("before it began does nothing, and after its end writes its end again", async () => {
    const run = newRun();
    expect(await train(run, {}, { stop: AbortSignal.abort() })).toEqual([]);
    expect(existsSync(join(run, "checkpoints"))).toBe(false);
    const done = await whole();
    const [weights] = endOf(done);
    rmSync(join(done, "final"), { recursive: true });
    expect(await train(done)).toEqual([]);
    expect(endOf(done)[0]).toBe(weights);
  });

  it("at once rejects with the reason, and may be started again in the same process", async () => {
    const run = newRun();
    const reason = new Error("now");
    const abort = new AbortController();
    const before = native().liveHandles();
    const running = train(
      run,
      {},
      {
        signal: abort.signal,
        onProgress: ({ stage, iteration, done }) => {
          if (stage === "update" && iteration === 2 && done > 0) abort.abort(reason);
        },
      },
    );
    await expect(running).rejects.toBe(reason);
    expect(native().liveHandles()).toEqual(before);
    await train(run);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("and whose caller walks away leaves nothing behind", async () => {
    const before = native().liveHandles();
    const run = newRun();
    const stopped = train(
      run,
      {},
      {
        onIteration: () => {
          throw new Error("enough");
        },
      },
    );
    await expect(stopped).rejects.toThrow("enough");
    expect(native().liveHandles()).toEqual(before);
  });
});

describe("adapters", () => {
  it("resume to the same bits, the base untouched", async () => {
    const learning = { ...SHORT.learning, lora: { rank: 2, alpha: 4, targets: ["to_q"] } };
    const [one, two] = [newRun(), newRun()];
    await train(one, { learning });
    await train(two, { learning, iterations: 1 });
    await train(two, { learning });
    for (const file of [
      "final/pytorch_lora_weights.safetensors",
      "checkpoints/000003/optimizer.safetensors",
    ]) {
      expect(readFileSync(join(two, file)).equals(readFileSync(join(one, file))), file).toBe(true);
    }
    const { tensors } = native().inspectFile(join(one, "checkpoints/000003/optimizer.safetensors"));
    expect(tensors.every(({ name }) => /\.lora_[AB]\.weight\./.test(name))).toBe(true);
  });
});

describe("checkpoints", () => {
  it("are kept to a number, and a later number of iterations goes on from the last", async () => {
    const run = newRun();
    await train(run, { iterations: 2, output: { keep: 1 } });
    expect(checkpointsOf(run)).toEqual(["000002"]);
    await train(run, { iterations: 3, output: { keep: 1 } });
    expect(checkpointsOf(run)).toEqual(["000003"]);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("that a killed process left half written are removed, never read", async () => {
    const run = newRun();
    await train(run, { iterations: 1 });
    put(join(run, "checkpoints/000009.tmp-4242/trainer.json"), "{");
    await train(run);
    expect(checkpointsOf(run)).toEqual(["000002", "000003"]);
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("that cannot be read are named", async () => {
    const spoil = async (name: string, content: string) => {
      const run = newRun();
      await train(run, { iterations: 1 });
      put(join(run, "checkpoints/000001", name), content);
      const before = native().liveHandles();
      await expect(train(run)).rejects.toMatchObject({
        code: "ERR_CHECKPOINT",
        message: expect.stringMatching(new RegExp(`no checkpoint can be read: .*${name}`)),
      });
      expect(existsSync(join(run, "lock"))).toBe(false);
      expect(native().liveHandles()).toEqual(before);
    };
    await spoil("trainer.json", "{");
    await spoil("trainer.json", '{"version": 2}');
    await spoil("trainer.json", "null");
    await spoil("optimizer.safetensors", "short");
  });

  it("that cannot be read give way to the one before, with a warning, and the bits are the same", async () => {
    const spoiled: [string, (path: string) => void][] = [
      ["optimizer.safetensors", (path) => truncateSync(path, statSync(path).size - 1)],
      ["optimizer.safetensors", (path) => rmSync(path)],
      ["trainer.json", (path) => truncateSync(path, 10)],
    ];
    for (const [name, spoil] of spoiled) {
      const run = newRun();
      await train(run, { iterations: 2 });
      spoil(join(run, "checkpoints/000002", name));
      const warnings: string[] = [];
      const iterations = await train(run, {}, { onWarning: (message) => warnings.push(message) });
      expect(warnings).toEqual([expect.stringMatching(`checkpoint 2 is skipped for 1: .*${name}`)]);
      expect(iterations.map(({ iteration }) => iteration)).toEqual([2, 3]);
      expect(endOf(run)).toEqual(endOf(await whole()));
      expect(checkpointsOf(run)).toEqual(["000002", "000003"]);
    }
  });

  it("that cannot be read never push a good one out", async () => {
    const run = newRun();
    await train(run, { iterations: 3, output: { keep: 3 } });
    writeFileSync(join(run, "checkpoints/000003/trainer.json"), "");
    writeFileSync(join(run, "checkpoints/000002/trainer.json"), "");
    const stop = new AbortController();
    await train(run, { output: { keep: 1 } }, { stop: stop.signal, onIteration: () => stop.abort() });
    expect(checkpointsOf(run)).toEqual(["000002"]);
    await train(run, { output: { keep: 1 } });
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("need the metrics that belong to them", async () => {
    const run = newRun();
    await train(run, { iterations: 1 });
    writeFileSync(join(run, "metrics.jsonl"), "");
    await expect(train(run)).rejects.toMatchObject({
      code: "ERR_FILE",
      message: expect.stringContaining("bytes of the last checkpoint"),
    });
    const file = await MetricsFile.open(join(folder, "fresh.jsonl"), 0);
    expect(await file.sync()).toBe(0);
    await file.close();
  });

  it("that cannot be written end the run", async () => {
    const run = newRun();
    const writing = train(
      run,
      {},
      {
        onIteration: ({ iteration }) => {
          if (iteration !== 1) return;
          // As when the disk goes away: where the next one belongs is now a file.
          rmSync(join(run, "checkpoints"), { recursive: true });
          put(join(run, "checkpoints"), "");
        },
      },
    );
    await expect(writing).rejects.toMatchObject({
      code: "ERR_CHECKPOINT",
      message: expect.stringContaining("cannot be written"),
    });
  });
});

describe("pictures", () => {
  it("are encoded and written while the reward still scores them", async () => {
    const run = newRun();
    const seen: string[][] = [];
    const pictures = (iteration: number) => join(run, "pictures", String(iteration + 1).padStart(6, "0"));
    const slow = rewardOf("slow", async (request) => {
      const there = () =>
        existsSync(pictures(request.iteration)) ? readdirSync(pictures(request.iteration)) : [];
      const whole = () => there().filter((name) => name.endsWith(".png"));
      for (let i = 0; request.iteration === 1 && i < 500 && whole().length < 4; i++)
        await new Promise((done) => setTimeout(done, 10));
      seen.push(whole().sort());
      return brightness.score(request);
    });
    await train(run, { reward: slow, iterations: 2, output: { picturesEvery: 2 } });
    const names = ["000-000.png", "000-001.png", "000-002.png", "000-003.png"];
    expect(seen).toEqual([[], names]);
    expect(readdirSync(join(run, "pictures"))).toEqual(["000002"]);
  }, 60_000);

  it("are on the disk before the reward sees them where that is asked for", async () => {
    const run = newRun();
    let seen = 0;
    const reward = rewardOf("late", async (request) => {
      seen = readdirSync(join(run, "pictures/000001")).length;
      return brightness.score(request);
    });
    await train(run, { reward, iterations: 1, output: { picturesEvery: 1, saveInBackground: false } });
    expect(seen).toBe(4);
  });

  it("that cannot be written end the run", async () => {
    const run = newRun();
    const reward = rewardOf("brightness", async (request) => {
      put(join(run, "pictures"), "");
      return brightness.score(request);
    });
    await expect(train(run, { reward, output: { picturesEvery: 2 } })).rejects.toMatchObject({
      code: "ERR_IMAGE",
    });
    expect(checkpointsOf(run)).toEqual(["000001"]);
  });
});

describe("evaluation", () => {
  it("shows the same pictures as long as nothing is learned, and names their scores", async () => {
    const run = newRun();
    const evaluation = {
      every: 1,
      prompts: ["peach", "apple"],
      picturesPerPrompt: 2,
      steps: 2,
      batch: 3,
      save: 3,
    };
    await train(run, { iterations: 1, learning: { ...SHORT.learning, learningRate: 0 }, evaluation });
    const at = (iteration: string) => join(run, "evaluation", iteration);
    expect(readdirSync(at("000000")).sort()).toEqual(["0000.png", "0001.png", "0002.png", "pictures.json"]);
    for (const name of readdirSync(at("000000"))) {
      expect(
        readFileSync(join(at("000001"), name)).equals(readFileSync(join(at("000000"), name))),
        name,
      ).toBe(true);
    }
    const [first] = JSON.parse(readFileSync(join(at("000000"), "pictures.json"), "utf8"));
    expect(first).toMatchObject({
      file: "0000.png",
      prompt: "peach",
      scores: { brightness: expect.any(Number) },
    });
    const lines = readFileSync(join(run, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ type, iteration }) => [type, iteration])).toEqual([
      ["evaluation", 0],
      ["iteration", 1],
      ["evaluation", 1],
    ]);
    expect(lines[0]).toMatchObject({ pictures: 4, rewards: { brightness: lines[2].rewards.brightness } });
  });
});

/** Velocity of a fixed input. */
