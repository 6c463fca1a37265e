// The report: what it is made of, that it needs nothing else, and that a browser shows it.
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { createPicture, readPicture } from "../lib/image/index.js";
import { chart, niceTicks, thinned } from "../lib/report/chart.js";
import { runningMean } from "../lib/report/charts.js";
import { bytes, change, duration, escaped, shortNumber } from "../lib/report/html.js";
import { writeReport } from "../lib/report/index.js";
import { scattered } from "../lib/report/pairs.js";
import { readRun } from "../lib/report/run.js";
import { summarize } from "../lib/report/summary.js";
import { shrunk } from "../lib/report/thumbnail.js";
import { Browser, chromium } from "./support/chromium.js";
import { testFolder } from "./support/device.js";
import { writeRunFolder } from "./support/run.js";

const folder = testFolder();

describe("words and numbers", () => {
  it.each([
    [0, "0"],
    [0.51234, "0.5123"],
    [12.345, "12.35"],
    [4560.4, "4560"],
    [0.0123456, "0.0123"],
    [1.25e-5, "1.25e-5"],
    [-2e9, "-2e9"],
    [Number.NaN, "-"],
  ])("%f is %s", (value, text) => expect(shortNumber(value)).toBe(text));

  it.each([
    [3.14, "3.1 s"],
    [59.6, "1 min 0 s"],
    [185, "3 min 5 s"],
    [7800, "2 h 10 min"],
  ])("%f seconds are %s", (seconds, text) => expect(duration(seconds)).toBe(text));

  it("bytes and changes", () => {
    expect([0, 1023, 1024, 3.4 * 2 ** 20, 12 * 2 ** 30].map(bytes)).toEqual([
      "0 B",
      "1020 B",
      "1 KiB",
      "3.4 MiB",
      "12 GiB",
    ]);
    expect(change(0.5, 0.57)).toBe("+14 %");
    expect(change(-2, -3)).toBe("\u221250 %");
    expect(change(0, 1)).toBe("");
  });

  it("text cannot leave its place", () => {
    expect(escaped(`<a href="x" id='y'>&`)).toBe("&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;");
  });
});

describe("charts", () => {
  it("has round ticks inside the range", () => {
    expect(niceTicks(0, 1, 4)).toEqual([0, 0.25, 0.5, 0.75, 1]);
    expect(niceTicks(0.313, 0.587, 4)).toEqual([0.4, 0.5]);
    expect(niceTicks(-3, 17, 5)).toEqual([0, 5, 10, 15]);
    expect(niceTicks(2, 2, 4)).toEqual([2]);
  });

  it("averages what no screen can show", () => {
    expect(thinned([1, 2, 3])).toEqual([1, 2, 3]);
    const many = thinned(Array.from({ length: 5000 }, (_, i) => i));
    expect(many.length).toBeLessThanOrEqual(800);
    expect(many[0]).toBe(3);
  });

  it("runs a mean over neighbours", () => {
    expect(runningMean([0, 3, 6, 9], 3)).toEqual([1.5, 3, 6, 7.5]);
  });

  const line = (values: number[]) => ({
    title: "t",
    x: values.map((_, i) => i),
    xName: "iteration",
    series: [{ name: "s", values, color: 1 }],
  });

  it("draws lines with gaps, single points, and nothing for nothing", () => {
    expect(
      chart(line([0, 1, Number.NaN, 1, 0]))
        .match(/class="line c1" d="([^"]*)"/)![1]!
        .match(/M/g),
    ).toHaveLength(2);
    expect(chart(line([5]))).toContain('class="dots c1"');
    expect(chart(line([]))).toBe("");
    expect(chart(line([2, 2, 2]))).not.toContain("NaN");
  });

  it("stacks areas from zero", () => {
    const series = [
      { name: "a", values: [1, 1], color: 1 },
      { name: "b", values: [3, 3], color: 2 },
    ];
    const drawn = chart({ title: "t", x: [0, 1], xName: "i", series, stacked: true });
    const tops = [...drawn.matchAll(/class="area c\d" d="M0 ([\d.]+)/g)].map((match) => Number(match[1]));
    // a reaches a quarter of what both reach; the axis has a little room above.
    expect((400 - tops[0]!) / (400 - tops[1]!)).toBeCloseTo(0.25, 2);
  });

  it("lets no name out of its attribute", () => {
    const hostile = chart({
      ...line([1, 2]),
      title: '"><script>x',
      series: [{ name: `'"><img>`, values: [1, 2], color: 1 }],
    });
    expect(hostile).not.toMatch(/<script|<img/);
  });
});

describe("pictures", () => {
  it("are shrunk by averages of blocks", () => {
    const picture = createPicture(800, 400);
    picture.data.fill(90);
    picture.data.set([0, 0, 0], 0);
    const small = shrunk(picture);
    expect([small.width, small.height]).toEqual([266, 133]);
    expect([small.data[0], small.data[3]]).toEqual([80, 90]);
    expect(shrunk(small)).toBe(small);
  });

  it("are chosen so that all kinds are shown, in order", () => {
    const kinds = Array.from({ length: 36 }, (_, i) => i);
    const chosen = scattered(kinds, 12);
    expect(chosen).toHaveLength(12);
    expect(chosen).toEqual([...chosen].sort((a, b) => a - b));
    for (const turn of [2, 3, 4]) expect(new Set(chosen.map((i) => i % turn)).size).toBe(turn);
    expect(scattered([1, 2], 3)).toEqual([1, 2]);
  });
});

describe("a run folder", () => {
  it("is read while it is written: half a line at the end counts for nothing", async () => {
    const run = writeRunFolder(join(folder, "half"));
    appendFileSync(join(run, "metrics.jsonl"), '{"type":"itera');
    expect((await readRun(run)).iterations).toHaveLength(6);
  });

  it("is summed up: first and last evaluation, iterations, seconds", async () => {
    const run = await readRun(writeRunFolder(join(folder, "sum")));
    expect(summarize(run)).toEqual({
      before: { reward: 0.4, clip: 0.4, taste: 1.5 },
      after: { reward: 0.52, clip: 0.52, taste: 1.5 },
      measured: "evaluation",
      iterations: 6,
      seconds: 6 * 5.5 + 2 * 1.5,
    });
    const training = summarize({ ...run, evaluations: [] });
    expect(training.measured).toBe("training");
    expect(training.before?.reward).toBeCloseTo(0.31);
    expect(summarize({ ...run, evaluations: [], iterations: [] })).toMatchObject({
      before: null,
      after: null,
      iterations: 0,
    });
  });

  it("that is none is refused", async () => {
    await expect(readRun(join(folder, "nowhere"))).rejects.toMatchObject({ code: "ERR_FILE" });
    const run = writeRunFolder(join(folder, "other"));
    writeFileSync(join(run, "config.json"), "{}");
    await expect(readRun(run)).rejects.toThrow("expected the configuration of a run");
  });

  it("cannot make the report read files elsewhere", async () => {
    const run = writeRunFolder(join(folder, "outside"));
    const list = join(run, "evaluation", "000000", "pictures.json");
    writeFileSync(list, JSON.stringify([{ file: "../../../secret.png", prompt: "p", scores: {} }]));
    await expect(writeReport(run)).rejects.toThrow(
      "expected a list of pictures with file, prompt and scores",
    );
  });
});

describe("the page", () => {
  const hostile = '<img src=x onerror="document.title=\'broken\'"><script>document.title="broken"</script>';
  const headers = { authorization: "Bearer very-secret" };
  const rewards = [{ type: "http", path: "http://127.0.0.1:9/", headers }];

  async function page(
    name: string,
    options: Parameters<typeof writeRunFolder>[1] = {},
  ): Promise<{ path: string; html: string }> {
    const path = await writeReport(writeRunFolder(join(folder, name), options));
    return { path, html: readFileSync(path, "utf8") };
  }

  it("needs nothing else and runs nothing else", async () => {
    const { html } = await page("alone", { prompts: ["a cat", hostile], rewards });
    const sources = [...html.matchAll(/\s(?:src|href)="([^"]*)"/g)].map(([, source]) => source!.slice(0, 5));
    expect(new Set(sources)).toEqual(new Set(["data:"]));
    expect(html).not.toMatch(/@import|url\((?!data:)/);
    expect(html).toContain("default-src 'none'");
    expect(html).not.toContain("<script>document.title");
    expect(html).not.toContain("very-secret");
  });

  it("shows every kind of chart, pairs of pictures, configuration and what went wrong", async () => {
    const { html } = await page("whole");
    const titles = [
      "Reward in training",
      "Evaluation: clip",
      "Evaluation: taste",
      "Policy ratio",
      "Clip fraction",
      "Gradient norm",
      "Seconds per stage",
    ];
    for (const title of titles) expect(html).toContain(`<h3>${title}</h3>`);
    expect(html.match(/<figure class="pair">/g)).toHaveLength(2);
    expect(html).toContain("<figcaption>a dog</figcaption>");
    expect(html).toContain("1 groups had the same reward");
    expect(html).toContain("learning.clipRange");
    expect(html).toContain("0.4 \u2192 0.52");
  });

  it("keeps large pictures small", async () => {
    const { html } = await page("large", { side: 1000 });
    const [, uri] = /<img src="data:image\/png;base64,([^"]+)"/.exec(html)!;
    const path = join(folder, "thumbnail.png");
    writeFileSync(path, Buffer.from(uri!, "base64"));
    expect((await readPicture(path)).width).toBe(333);
  });

  it("can be written before anything was measured", async () => {
    const run = writeRunFolder(join(folder, "early"));
    writeFileSync(join(run, "metrics.jsonl"), "");
    expect(readFileSync(await writeReport(run), "utf8")).toContain("0 of 6");
  });

  describe.skipIf(!chromium)("in a browser", () => {
    let browser: Browser | undefined;
    afterAll(() => browser?.close());
    const sizes = [1280, 390].flatMap((width) => [false, true].map((dark) => ({ width, height: 900, dark })));

    it.each(sizes)("$width px wide, dark $dark: no complaint, nothing beside the page", async (size) => {
      browser ??= new Browser();
      const { path } = await page("shown", { prompts: ["a cat", hostile] });
      const shown = await browser.open(`file://${path}`, size);
      expect(await shown.evaluate("document.documentElement.scrollWidth")).toBe(size.width);
      expect(await shown.evaluate("document.title")).toContain("danceflux");
      expect(await shown.evaluate("[...document.images].every((image) => image.naturalWidth === 16)")).toBe(
        true,
      );
      expect(await shown.evaluate("document.querySelectorAll('.plot path.line').length")).toBeGreaterThan(8);
      expect(await shown.evaluate("getComputedStyle(document.body).backgroundColor")).toBe(
        size.dark ? "rgb(18, 22, 28)" : "rgb(246, 247, 249)",
      );
      expect(shown.complaints).toEqual([]);
    });

    it("tells the values under the pointer", async () => {
      browser ??= new Browser();
      const { path } = await page("pointer");
      const shown = await browser.open(`file://${path}`, { width: 1280, height: 900, dark: false });
      const tip = await shown.evaluate<string>(`(() => {
        const plot = document.querySelector("[data-chart]"), box = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top + 5 }));
        return plot.querySelector(".tip").innerText;
      })()`);
      expect(tip).toContain("iteration 6");
      expect(tip).toContain("clip 0.52");
      expect(shown.complaints).toEqual([]);
    });
  });
});
