// Recording, replaying and comparing runs of the small pipeline; the command line; pages in a browser.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { compareDumps } from "../lib/align/compare.js";
import { parseSide, readDump, recordRun, replayDump } from "../lib/align/index.js";
import { DumpRecorder } from "../lib/align/recorder.js";
import { main } from "../lib/commands/main.js";
import type { PartialConfig, TrainConfig } from "../lib/grpo/config.js";
import { completeConfig } from "../lib/grpo/validate.js";
import { createPicture } from "../lib/image/index.js";
import { runJob } from "../lib/native.js";
import { Browser, chromium } from "./support/chromium.js";
import { testDevice, testFolder } from "./support/device.js";
import { smallPipeline, writeSmallPipeline } from "./support/pipeline.js";
import { endOf, PROMPTS, SHORT, shortRun } from "./support/training.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);
writeSmallPipeline(at("model"));
const REWARD = at("reward.mjs");
writeFileSync(
  REWARD,
  "export default (pictures) => pictures.map(({ data }) => data.reduce((s, b) => s + b, 0) / data.length / 255);\n",
);
process.env.DANCEFLUX_PLUGIN_PATH = join(import.meta.dirname, "..", "build", "test-plugins");

const PARTIAL: PartialConfig = {
  ...SHORT,
  model: { path: at("model"), dtype: "f32" },
  prompts: PROMPTS,
  rewards: [{ type: "module", path: REWARD, name: "brightness" }],
  learning: { ...SHORT.learning, recompute: "none" },
};
const config: TrainConfig = completeConfig(PARTIAL);
const file = at("config.json");
writeFileSync(file, JSON.stringify(PARTIAL));

const record = async (name: string, more: Partial<Parameters<typeof recordRun>[1]> = {}) => {
  await recordRun(config, { out: at(name), level: "op", summary: "statistics", steps: [0], ...more });
  return readDump(at(name));
};

describe("recording", () => {
  const device = testDevice();

  it("changes no bit of a run, at any level", async () => {
    await shortRun(device, { model: at("plain"), run: at("run-plain") });
    for (const level of ["stage", "op"] as const) {
      const options = { folder: at(`bits-${level}`), level, summary: "full", steps: [0, 2] } as const;
      const recorder = await DumpRecorder.open(device, options, {} as never);
      await shortRun(device, { model: at(`m-${level}`), run: at(`run-${level}`) }, {}, { recorder });
      await recorder.close();
      expect(endOf(at(`run-${level}`))).toEqual(endOf(at("run-plain")));
      expect(recorder.seconds).toBeGreaterThan(0);
    }
  });

  it("tells all stages of the iterations that were asked for, with pictures", async () => {
    const { records, header, complete, pictures } = await record("steps", { level: "stage", steps: [0, 2] });
    const stages = new Set(records.map(({ stage }) => stage));
    for (const stage of ["prompts", "rollout/s0", "rollout/s3", "decode", "reward", "advantage"])
      expect(stages).toContain(`it2/${stage}`);
    expect(stages).toContain("it0/update/u1/weights");
    expect([...stages].some((stage) => stage.startsWith("it1"))).toBe(false);
    expect([complete, header.weights, pictures.length]).toEqual([true, "f32", 8]);
    const names = records.filter(({ stage }) => stage === "it0/rollout/s1").map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(["latents.0", "latents.3", "next.3", "logProb.2"]));
    expect(Object.keys(header.model)).toContain(join("transformer", "config.json"));
  });

  it("refuses a folder that is not empty and steps that never come", async () => {
    mkdirSync(at("full"));
    writeFileSync(at("full/x"), "");
    await expect(record("full")).rejects.toMatchObject({ code: "ERR_OUTPUT" });
    await expect(record("late", { steps: [3] })).rejects.toMatchObject({ code: "ERR_OPTION" });
  });

  it("ends cleanly when the tensors cannot be written, and keeps what it has", async () => {
    const pipeline = await smallPipeline(device, at("disk"));
    const options = { folder: at("gone"), level: "stage", summary: "full", shardBytes: 64 } as const;
    await runJob(device.handle.observe(options));
    const noise = await runJob(device.handle.upload(new Float32Array(64), [64]));
    await runJob(device.handle.observeTensor("x", "output", noise));
    await expect(runJob(device.handle.observed())).rejects.toMatchObject({ code: "ERR_FILE" });
    expect((await runJob(device.handle.observed())).lines).toEqual([]);
    await runJob(device.handle.observe(null));
    noise.dispose();
    pipeline.dispose();
  });
});

describe("comparing runs", () => {
  it("is bit for bit the same for other threads, batches and microbatches", async () => {
    const a = await record("one-thread", { level: "stage", side: parseSide("cpu,threads=1,batch=3") });
    const comparison = await compareDumps(a, await record("as-configured", { level: "stage" }));
    expect(comparison.sentence).toMatch(/^Aligned: all \d+ tensors have the same bits/);
  });

  const cases = ["rope-half", "scale-shift", "head-zero", "f16-overflow", "strided-read"] as const;
  it.each(cases)("finds %s at the op where it acts", async (fault) => {
    const truth = at(`truth-${fault}`);
    const side = parseSide(`cpu_faulty,fault=${fault},after=2,inside=flux,truth=${truth}`);
    const comparison = await compareDumps(await record(`faulty-${fault}`, { side }), await clean());
    expect(comparison.first?.record.name).toBe(readFileSync(truth, "utf8").trim());
    expect(comparison.first?.record.stage).toMatch(/^it0\/rollout\/s/);
  });

  it("finds a wrong gradient where the forward pass is right", async () => {
    const side = parseSide("cpu_faulty,fault=gelu-backward");
    const { first } = await compareDumps(await record("faulty-gradient", { side }), await clean());
    expect(first?.record).toMatchObject({ role: "gradient", stage: "it0/update/u0" });
  });

  it("finds another text length in the encoder", async () => {
    const { first } = await compareDumps(
      await record("short-text", { side: parseSide("cpu,textLength=6") }),
      await clean(),
    );
    expect(first?.record.stage).toBe("encode");
    expect(first?.why).toContain("shape");
  });

  it.each(["cpu_faulty,fault=reduction-order", "cpu,isa=portable"])("calls %s harmless", async (side) => {
    const a = await record(`harmless-${side.replace(/\W/g, "-")}`, { side: parseSide(side) });
    const comparison = await compareDumps(a, await clean());
    expect(comparison.findings.some(({ status }) => status === "agrees")).toBe(true);
    expect([comparison.first, comparison.aligned]).toEqual([undefined, true]);
  });

  let known: ReturnType<typeof record> | undefined;
  const clean = () => {
    known ??= record("clean");
    return known;
  };
});

describe("replaying", () => {
  it("gives every stage the recorded inputs: the same bits on the same side", async () => {
    const a = await record("replay-a", { level: "stage", summary: "full", steps: [0, 1] });
    await replayDump(config, a, { out: at("replay-b") });
    const comparison = await compareDumps(await readDump(at("replay-b")), a);
    expect(comparison.sentence).toMatch(/^Aligned: all \d+ tensors have the same bits/);
    expect(comparison.onlyA.length + comparison.onlyB.length).toBe(0);
  });

  it("does not hand a fault on from stage to stage", async () => {
    const a = await readDump(at("replay-a"));
    const side = parseSide("cpu_faulty,fault=head-zero,inside=vae");
    await replayDump(config, a, { out: at("replay-fault"), side, level: "block" });
    const { findings, first } = await compareDumps(await readDump(at("replay-fault")), a);
    expect(first?.record.stage).toBe("it0/decode");
    const off = new Set(
      findings.filter(({ status }) => status === "origin").map(({ record: { stage } }) => stage),
    );
    expect([...off].every((stage) => stage.endsWith("decode"))).toBe(true);
  });

  it("needs whole tensors, and the weights before a later iteration", async () => {
    await expect(replayDump(config, await readDump(at("clean")), { out: at("r1") })).rejects.toThrow(
      /whole tensors/,
    );
    const late = await record("late-only", { level: "stage", summary: "full", steps: [1] });
    await expect(replayDump(config, late, { out: at("r2") })).rejects.toThrow(/weights after iteration 0/);
  });
});

describe("danceflux align", () => {
  async function run(...args: string[]) {
    let [stdout, stderr] = ["", ""];
    const status = await main(["align", ...args], {
      stdout: { write: (text: string) => (stdout += text) },
      stderr: { write: (text: string) => (stderr += text), isTTY: false } as never,
    });
    return { status, stdout, stderr };
  }
  const FAULT = "cpu_faulty,fault=head-zero,inside=flux";

  it("records and compares, with 0, 1 and 2 as exit statuses", async () => {
    const recorded = await run("record", file, "--out", at("cli-a"), "--level", "op", "--side", FAULT);
    expect(recorded).toMatchObject({ status: 0 });
    expect(recorded.stdout).toMatch(/recording took .* of them/);
    await run("record", file, "--out", at("cli-b"), "--level", "op");
    expect(await run("compare", at("cli-b"), at("cli-b"))).toMatchObject({ status: 0 });
    const differs = await run("compare", at("cli-a"), at("cli-b"), "--json", "--html", at("page.html"));
    const told = JSON.parse(differs.stdout);
    expect([differs.status, told.aligned, told.first.op]).toEqual([1, false, "attention"]);
    expect(await run("compare", at("cli-a"), at("nothing"))).toMatchObject({ status: 2 });
    expect(await run("compare", at("cli-a"))).toMatchObject({ status: 2 });
    expect((await run("record", file, "--out", at("x"), "--level", "deep")).status).toBe(2);
    expect((await run("record", file, "--out", at("x"), "--ranks", "1")).stderr).toContain(
      "ranks: expected 0",
    );
  });

  it("runs the acceptance of inference, on one machine and from a folder", async () => {
    const base = ["inference", file, "--pictures", "3", "--out"];
    const good = await run(...base, at("inf"), "--a", "cpu,threads=1", "--json");
    expect([good.status, JSON.parse(good.stdout).steps.length]).toEqual([0, 4]);
    expect(readdirSync(at("inf/a/step-03"))).toEqual(["000.png", "001.png", "002.png"]);
    expect(existsSync(at("inf/steps.png"))).toBe(true);
    const bad = await run(...base, at("inf2"), "--a", "cpu_faulty,fault=rope-half", "--b", at("inf/b"));
    expect(bad.status).toBeLessThan(2);
  });

  it("runs the acceptance of rewards", async () => {
    const good = await run(
      "reward",
      file,
      "--pictures",
      "6",
      "--a",
      "cpu,threads=1",
      "--out",
      at("rew"),
      "--json",
    );
    expect([good.status, JSON.parse(good.stdout).rewards[0].maxAbsolute]).toEqual([0, 0]);
    expect(readFileSync(at("rew/report.html"), "utf8")).toContain("brightness");
  });

  it("runs the acceptance of training, and on finished runs", async () => {
    const first = await run(
      "train",
      file,
      "--iterations",
      "3",
      "--a",
      "cpu,threads=1",
      "--out",
      at("tr"),
      "--json",
    );
    expect([first.status, JSON.parse(first.stdout).curves[0].share]).toEqual([0, 0]);
    const again = await run("train", file, "--a", at("tr/a"), "--b", at("tr/b"), "--out", at("tr2"));
    expect(again.status).toBe(0);
  });

  describe.skipIf(!chromium)("its pages in a browser", () => {
    let browser: Browser | undefined;
    afterAll(() => browser?.close());
    const sizes = [
      { width: 1280, height: 900, dark: false },
      { width: 390, height: 900, dark: true },
    ];
    it.each(sizes)("$width px wide, dark $dark: no complaint, sorts, slides", async (size) => {
      browser ??= new Browser();
      for (const page of ["page.html", "inf/report.html", "rew/report.html", "tr/report.html"]) {
        const shown = await browser.open(`file://${at(page)}`, size);
        expect(await shown.evaluate("document.documentElement.scrollWidth"), page).toBe(size.width);
        expect(await shown.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")).toBe(
          true,
        );
        expect(shown.complaints).toEqual([]);
        expect((await shown.screenshot()).length).toBeGreaterThan(5000);
      }
      const shown = await browser.open(`file://${at("page.html")}`, size);
      expect(await shown.evaluate("document.querySelector('.mark').textContent")).toBe("first divergence");
      expect(await shown.evaluate("document.querySelectorAll('svg.ulps rect').length")).toBeGreaterThan(0);
      const column =
        "[...document.querySelectorAll('table.sortable tbody tr')].map((row) => Number(row.cells[4].dataset.value))";
      await shown.evaluate("document.querySelectorAll('table.sortable th')[4].click()");
      const errors = await shown.evaluate<number[]>(column);
      expect(errors).toEqual([...errors].sort((x, y) => y - x));
      const slide =
        "(() => { const input = document.querySelector('.slide input'); input.value = 20; input.dispatchEvent(new Event('input')); return input.parentElement.style.getPropertyValue('--at'); })()";
      expect(await shown.evaluate(slide)).toBe("20%");
    });
  });
});

describe("looking at pictures while training", () => {
  const device = testDevice();
  it("tells in the metrics and warns when they change beyond what learning does", async () => {
    const warned: string[] = [];
    const output = { folder: "", checkpointEvery: 1, pictureCheck: true };
    const options = { onWarning: (message: string) => void warned.push(message) };
    const all = await shortRun(device, { model: at("look"), run: at("run-look") }, { output }, options);
    expect(all[0]!.pictures).toMatchObject({ colourDistance: 0, warnings: [] });
    expect(all[2]!.pictures!.colourDistance).toBeGreaterThanOrEqual(0);
    const { PictureWatch } = await import("../lib/grpo/picture_watch.js");
    const watch = new PictureWatch(16);
    watch.add([
      createPicture(
        64,
        64,
        new Uint8Array(64 * 64 * 3).map((_, i) => (i * 7919) % 200),
      ),
    ]);
    const report = () => watch.report([watch.seen()!])!;
    expect(report().warnings).toEqual([]);
    watch.add([createPicture(64, 64, new Uint8Array(64 * 64 * 3).fill(255))]);
    expect(report().warnings.join()).toMatch(/flat.*saturated|colours/);
  });
});
