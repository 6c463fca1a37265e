// What recording and comparing cost: the share of an iteration that recording at stage level takes, the memory of recording whole tensors, and
// comparing a pair of 1 GB files beside reading them. `theirs` is empty: there is no peer; `checked` says that bits stayed the same, and that a planted difference was found.
import {
  closeSync,
  fsyncSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { compareTensors, parseSide, recordRun, TensorFile } from "../dist/align/index.js";
import { openDevice } from "../dist/index.js";
import { loadConfig } from "../dist/load_config.js";
import { inRoot } from "../scripts/common.mjs";

const GB = 1e9;
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** What is not in use any more is gone. */
const collectGarbage = (() => {
  setFlagsFromString("--expose-gc");
  return runInNewContext("gc");
})();

const status = (name) =>
  1024 * Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(readFileSync("/proc/self/status", "utf8"))[1]);

/** Bytes that `work` takes at its peak, beyond what is there before: by the kernel's own high-water mark. */
async function peakOf(work) {
  collectGarbage();
  await setTimeout(300); // freed buffers go back in the background
  writeFileSync("/proc/self/clear_refs", "5");
  const before = status("VmRSS");
  const result = await work();
  return { result, peak: status("VmHWM") - before };
}

async function recording({ report, threads, repeat }) {
  const folder = mkdtempSync(join(tmpdir(), "danceflux-bench-"));
  try {
    // The demo's own iteration: 96 pictures of 8 steps.
    const config = await loadConfig(inRoot("models", "tiny-shapes", "demo.json"));
    const results = [];
    for (let i = 0; i < repeat; i++) {
      const steps = [0, 1];
      const options = {
        out: join(folder, String(i)),
        level: "stage",
        summary: "statistics",
        steps,
        pictures: 12,
      };
      results.push(await recordRun(config, { ...options, side: parseSide(`cpu,threads=${threads}`) }));
    }
    const share = median(results.map(({ recording, seconds }) => recording / seconds));
    report({
      name: "align/recording, share of a run",
      ours: 100 * share,
      unit: "%",
      checked: true,
      note: "limit 5 %",
    });
    return share <= 0.05;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Whole tensors of all sizes: larger than a file of a dump, as large as one, and many that share one. */
async function recordingMemory({ report }) {
  const folder = mkdtempSync(join(process.env.DANCEFLUX_BENCH_FOLDER ?? tmpdir(), "danceflux-bench-"));
  const device = openDevice("cpu", {});
  try {
    const { handle } = device;
    const tensors = [];
    for (const [rows, count] of [
      [128, 1],
      [15, 4],
      [3, 12],
    ]) {
      const values = Float32Array.from({ length: rows << 20 }, (_, i) => (i % 977) / 64);
      const tensor = await handle.upload(values, [rows, 1 << 20]).promise;
      for (let i = 0; i < count; i++) tensors.push({ tensor, bytes: values.byteLength });
    }
    const { result: lines, peak } = await peakOf(async () => {
      await handle.observe({ level: "stage", summary: "full", folder }).promise;
      await handle.observeStage("bench").promise;
      for (const [i, { tensor }] of tensors.entries())
        await handle.observeTensor(`t${i}`, "output", tensor).promise;
      return (await handle.observed(true).promise).lines;
    });
    await handle.observe(null).promise;
    const files = readdirSync(folder).map((name) => statSync(join(folder, name)).size);
    const [written, wanted] = [
      files.reduce((sum, size) => sum + size, 0),
      tensors.reduce((sum, { bytes }) => sum + bytes, 0),
    ];
    const checked = lines.length === tensors.length && written > wanted && written < wanted + (1 << 20);
    const told = {
      ours: peak / 2 ** 20,
      unit: "MiB",
      checked,
      note: `limit 200; ${Math.round(wanted / 2 ** 20)} MiB in whole`,
    };
    report({ name: "align/memory of recording", ...told });
    for (const tensor of new Set(tensors.map((each) => each.tensor))) tensor.dispose();
    return checked && peak < 200 * 2 ** 20;
  } finally {
    device.dispose();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A file of one f32 tensor; `changed` adds one to a single element. */
function writePair(path, count, changed) {
  const header = JSON.stringify({ x: { dtype: "F32", shape: [count], data_offsets: [0, 4 * count] } }).padEnd(
    120,
  );
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(120n);
  const file = openSync(path, "w");
  writeSync(file, Buffer.concat([prefix, Buffer.from(header)]));
  const piece = Float32Array.from(
    { length: 1 << 20 },
    (_, i) => Math.sin(i) + (changed ? 1e-7 * Math.cos(i) : 0),
  );
  for (let at = 0; at < count; at += piece.length) {
    const part = piece.slice(0, Math.min(piece.length, count - at));
    if (changed && at === 0) part[5] += 1;
    writeSync(file, new Uint8Array(part.buffer, 0, part.byteLength));
  }
  fsyncSync(file); // nothing is written any more while times are taken
  closeSync(file);
}

function readWhole(path) {
  const buffer = Buffer.alloc(4 << 20);
  const file = openSync(path, "r");
  while (readSync(file, buffer) > 0);
  closeSync(file);
}

/** Seconds: of the clock, or of the processors that this process used. */
function clock(cpuTime) {
  const started = performance.now();
  const used = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(used);
    return cpuTime ? (user + system) / 1e6 : (performance.now() - started) / 1000;
  };
}

/** Both files are in the page cache: that is where reading is fastest and comparing has to keep up. */
async function comparing({ report, repeat, cpuTime }) {
  const folder = mkdtempSync(join(process.env.DANCEFLUX_BENCH_FOLDER ?? tmpdir(), "danceflux-bench-"));
  try {
    const paths = [join(folder, "a.safetensors"), join(folder, "b.safetensors")];
    const count = GB / 4;
    for (const [i, path] of paths.entries()) writePair(path, count, i === 1);
    const reading = [];
    const times = [];
    const peaks = [];
    let distance;
    for (const path of paths) readWhole(path);
    for (let i = 0; i < repeat; i++) {
      const read = clock(cpuTime);
      for (const path of paths) readWhole(path);
      reading.push(read());
      const { peak } = await peakOf(async () => {
        const compared = clock(cpuTime);
        const files = [await TensorFile.open(paths[0]), await TensorFile.open(paths[1])];
        distance = await compareTensors(files[0].tensor("x"), files[1].tensor("x"));
        for (const file of files) await file[Symbol.asyncDispose]();
        times.push(compared());
      });
      peaks.push(peak);
    }
    const checked =
      distance.count === count && distance.worst === 5 && Math.abs(distance.maxAbsolute - 1) < 1e-6;
    const ratio = median(times) / median(reading);
    const peak = Math.max(...peaks);
    report({ name: "align/reading a pair of 1 GB", ours: median(reading), unit: "s", checked });
    report({ name: "align/comparing a pair of 1 GB", ours: median(times), unit: "s", checked });
    report({ name: "align/comparing over reading", ours: ratio, unit: "x", checked, note: "limit 2" });
    report({
      name: "align/memory of comparing",
      ours: peak / 2 ** 20,
      unit: "MiB",
      checked,
      note: "limit 200",
    });
    return checked && ratio <= 2 && peak < 200 * 2 ** 20;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export async function run(options) {
  const good = [await recording(options), await recordingMemory(options), await comparing(options)];
  return good.every(Boolean);
}
