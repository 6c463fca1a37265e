// FLUX-width blocks (D 3072, 2 double + 4 single, 512 text tokens, batch 1): forward, and forward with backward for every parameter,
// beside PyTorch. The two sides run one after the other: together they would not fit 24 GB.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildNativeBench } from "./native.mjs";
import { formula, median, relativeError, runPeer, startPeer } from "./peer.mjs";

export const TEXT_LENGTH = 512;
/** The parameter whose gradient is compared. */
export const WATCHED = "transformer_blocks.0.attn.to_q.weight";
const SIDE = Number(process.env.DANCEFLUX_BENCH_SIDE ?? 512);
export const GIB = 2 ** 30;
const AGREE = { velocity: 1e-4, gradient: 1e-3 };

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

function measureOurs(model, folder, dtype, threads, repeat, cpuTime) {
  const args = [here("wide-side.mjs"), model, folder, dtype, threads, repeat, SIDE, cpuTime].map(String);
  return JSON.parse(
    execFileSync(process.execPath, args, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] }),
  );
}

/** The machine's multiply-add peak in GFLOP/s; the program that measures it belongs to the C++ tests and is built on first use. */
function fmaPeak(threads) {
  const program = buildNativeBench("danceflux_gemm_bench");
  const args = ["--json", "--threads", String(threads), "only the peak"];
  const [first] = execFileSync(program, args, { encoding: "utf8" }).trim().split("\n");
  return JSON.parse(first).max;
}

/** Throws what differs: of a side that computes something else neither time nor memory means anything. */
function checkAgreement(dtype, errors) {
  const wrong = Object.entries(AGREE).filter(([name, most]) => !(errors[name] <= most));
  if (wrong.length === 0) return;
  const told = wrong.map(([name, most]) => `${name}: expected ${most} or less, got ${errors[name]}`);
  throw new Error(`wide ${dtype}: relative error to PyTorch: ${told.join("; ")}`);
}

/** Both sides, measured, with outputs that agree; used by `memory` too. */
export async function measure(threads, repeat, cpuTime = false) {
  const folder = mkdtempSync(join(tmpdir(), "danceflux-wide-"));
  const model = join(folder, "model");
  const grid = SIDE / 16;
  const arrays = {
    latents: formula(grid * grid * 64, 1, 1.7),
    text: formula(TEXT_LENGTH * 4096, 2, 0.4),
    pooled: formula(768, 3, 1),
    d_velocity: formula(grid * grid * 64, 4, 1),
  };
  for (const [name, values] of Object.entries(arrays)) writeFileSync(join(folder, `${name}.f32`), values);
  try {
    runPeer(here("peers/wide.py"), [folder, threads, model, "make"]);
    const peer = await startPeer(here("peers/wide.py"), [threads, model]);
    const sizes = { rows: grid, columns: grid, text_length: TEXT_LENGTH };
    const theirs = { forward: [], backward: [] };
    for (let i = 0; i <= repeat; i++) {
      const answer = await peer.ask({ do: "forward", ...sizes }, arrays);
      if (i) theirs.forward.push(answer[cpuTime ? "cpuSeconds" : "seconds"]);
      theirs.forwardPeak = answer.peak;
    }
    for (let i = 0; i <= repeat; i++) {
      const answer = await peer.ask({ do: "backward", watched: WATCHED, ...sizes });
      if (i) theirs.backward.push(answer[cpuTime ? "cpuSeconds" : "seconds"]);
      theirs.backwardPeak = answer.peak;
    }
    const golden = { velocity: peer.read("velocity"), gradient: peer.read("gradient") };
    await peer.end();
    const ours = {};
    for (const dtype of ["f32", "bf16"]) {
      const side = measureOurs(model, folder, dtype, threads, repeat, cpuTime);
      const read = (name) =>
        new Float32Array(new Uint8Array(readFileSync(join(folder, `ours-${name}-${dtype}.f32`))).buffer);
      checkAgreement(dtype, {
        velocity: relativeError(read("velocity"), golden.velocity),
        gradient: relativeError(read("gradient"), golden.gradient),
      });
      ours[dtype] = side;
    }
    return { ours, theirs };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const inGib = (bytes) => (bytes / GIB).toFixed(2);

export async function run({ report, threads, repeat, cpuTime }) {
  const { ours, theirs } = await measure(threads, repeat, cpuTime);
  const peak = fmaPeak(threads);
  for (const [dtype, side] of Object.entries(ours)) {
    for (const [pass, factor] of [
      ["forward", 1],
      ["backward", 3],
    ]) {
      const time = median(side.times[pass]);
      const rate = (side.flops * factor) / time / 1e9;
      const share = `${((rate / peak) * 100).toFixed(0)} % of the FMA peak of ${peak.toFixed(0)}`;
      const memory = `peak ${inGib(side[`${pass}Peak`])} / ${inGib(theirs[`${pass}Peak`])} GiB`;
      const name = `wide/${pass === "forward" ? "forward" : "forward+backward"} ${SIDE} px ${dtype}`;
      report({
        name,
        ours: time,
        theirs: median(theirs[pass]),
        unit: cpuTime ? "CPU s" : "s",
        checked: true,
        note: `${rate.toFixed(0)} GFLOP/s, ${share}, ${memory}`,
      });
    }
  }
}
