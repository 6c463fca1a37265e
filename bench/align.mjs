// What recording and comparing cost: the share of an iteration that recording at stage level takes, and comparing a pair of 1 GB files beside
// reading them. `theirs` is empty: there is no peer; `checked` says that bits stayed the same, and that a planted difference was found.
import { spawnSync } from "node:child_process";
import { closeSync, fsyncSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compareTensors, parseSide, recordRun, TensorFile } from "../dist/align/index.js";
import { loadConfig } from "../dist/load_config.js";
import { inRoot } from "../scripts/common.mjs";

const GB = 1e9;
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

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
  fsyncSync(file); // what is not on the disk yet cannot be dropped from memory
  closeSync(file);
}

function readWhole(path) {
  const buffer = Buffer.alloc(4 << 20);
  const file = openSync(path, "r");
  while (readSync(file, buffer) > 0);
  closeSync(file);
}

/** Drops files from the page cache, so that reading means reading. */
function forget(paths) {
  for (const path of paths) spawnSync("dd", [`if=${path}`, "iflag=nocache", "count=0"], { stdio: "ignore" });
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

async function comparing({ report, repeat, cpuTime }) {
  const folder = mkdtempSync(join(process.env.DANCEFLUX_BENCH_FOLDER ?? tmpdir(), "danceflux-bench-"));
  try {
    const paths = [join(folder, "a.safetensors"), join(folder, "b.safetensors")];
    const count = GB / 4;
    for (const [i, path] of paths.entries()) writePair(path, count, i === 1);
    const reading = [];
    const times = [];
    let distance;
    let peak = 0;
    const base = process.memoryUsage.rss();
    for (let i = 0; i < repeat; i++) {
      forget(paths);
      const read = clock(cpuTime);
      for (const path of paths) readWhole(path);
      reading.push(read());
      forget(paths);
      const compared = clock(cpuTime);
      const files = [await TensorFile.open(paths[0]), await TensorFile.open(paths[1])];
      distance = await compareTensors(files[0].tensor("x"), files[1].tensor("x"));
      for (const file of files) await file[Symbol.asyncDispose]();
      times.push(compared());
      peak = Math.max(peak, process.memoryUsage.rss() - base);
    }
    const checked =
      distance.count === count && distance.worst === 5 && Math.abs(distance.maxAbsolute - 1) < 1e-6;
    const ratio = median(times) / median(reading);
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
  const good = [await recording(options), await comparing(options)];
  return good.every(Boolean);
}
