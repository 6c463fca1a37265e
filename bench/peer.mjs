// The other side of a comparison: a Python process that is told by lines of JSON what to do, and answers with lines of JSON.
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

/** Median of some numbers. */
export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** ||a - b|| / ||b|| */
export function relativeError(a, b) {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** Numbers from a formula, the same on both sides: a small generator, not a good one. Uniform in +-scale. */
export function formula(count, seed, scale) {
  const values = new Float32Array(count);
  let state = seed >>> 0;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = ((state >>> 8) / 8388608 - 1) * scale;
  }
  return values;
}

/** Runs a script of the other side to its end. */
export function runPeer(script, args) {
  const python = process.env.DANCEFLUX_PYTHON;
  if (!python) throw new Error(`${script} needs PyTorch: set DANCEFLUX_PYTHON`);
  execFileSync(python, [script, ...args.map(String)], { stdio: ["ignore", "inherit", "inherit"] });
}

/** Undefined when no Python was named. */
export async function startPeer(script, args) {
  const python = process.env.DANCEFLUX_PYTHON;
  if (!python) {
    console.error("DANCEFLUX_PYTHON is not set: PyTorch is not measured");
    return undefined;
  }
  const folder = mkdtempSync(join(tmpdir(), "danceflux-bench-"));
  const side = await startSide(python, [script, folder, ...args]);
  return {
    /** Sends a command; arrays travel as raw f32 files in the folder. */
    async ask(command, inputs = {}) {
      for (const [name, values] of Object.entries(inputs)) writeFileSync(join(folder, `${name}.f32`), values);
      return side.ask(command);
    },
    read: (name) => readNumbers(folder, name),
    /** Resolves when the process is gone, and its memory with it. */
    async end() {
      await side.end();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** An array that the other side, or this one, left in a folder. */
export function readNumbers(folder, name) {
  const bytes = readFileSync(join(folder, `${name}.f32`));
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** A process that answers lines of JSON, once it has said hello; of either side. */
export async function startSide(program, args) {
  const child = spawn(program, args.map(String), { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.on("error", () => {}); // of a process that is gone; its end is told below
  const gone = new Promise((resolve) => child.once("close", resolve));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${args[0]} ended early, with status ${await gone}`);
    return JSON.parse(value);
  };
  await answer(); // it says hello when its models are loaded
  return {
    ask(command) {
      child.stdin.write(`${JSON.stringify(command)}\n`);
      return answer();
    },
    async end() {
      child.stdin.end();
      await gone;
    },
  };
}

/** Alternates two measurements, so that a change of the machine's speed meets both, and answers the medians in seconds. */
export async function alternate(repeat, ours, theirs) {
  const times = [[], []];
  for (let i = 0; i < repeat; i++) {
    times[0].push(await ours());
    if (theirs) times[1].push(await theirs());
  }
  return { ours: median(times[0]), theirs: theirs ? median(times[1]) : null };
}

/** Seconds of an asynchronous piece of work; of the processor (all threads of this process) when `cpuTime`. */
export async function seconds(work, cpuTime = false) {
  const started = performance.now();
  const before = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(before);
  return cpuTime ? (user + system) / 1e6 : (performance.now() - started) / 1000;
}
