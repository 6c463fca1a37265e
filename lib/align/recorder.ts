/** Records a run's stages into a dump: the bridge from the trainer and the device to the manifest. */
import { join } from "node:path";
import type { Device } from "../device.js";
import type { RunRecorder, StageRecorder } from "../grpo/recorder.js";
import { toPictures } from "../image/from_device.js";
import { AsyncImageWriter } from "../image/index.js";
import { type NativeModel, type NativeTensor, native, runJob } from "../native.js";
import { type DumpHeader, DumpWriter, type Level, PICTURES, type Summary } from "./dump.js";

export interface RecorderOptions {
  folder: string;
  level: Level;
  summary: Summary;
  /** Iterations, counted from 0. */
  steps: readonly number[];
  /** Pictures kept per iteration, the first ones of this rank; default 12. */
  pictures?: number;
}

/** A line for numbers that the host holds. */
function numbersLine(stage: string, name: string, values: ArrayLike<number>, summary: Summary): string {
  const all = Float64Array.from(values);
  const measure = new (native().Measure)();
  measure.add(new Uint8Array(all.buffer), "f64");
  const { crc, count, ...statistics } = measure.result();
  return JSON.stringify({
    stage,
    name,
    block: "",
    op: "numbers",
    role: "value",
    index: 0,
    dtype: "f64",
    shape: [all.length],
    crc: crc.toString(16).padStart(8, "0"),
    count,
    ...(summary === "checksum" ? {} : statistics),
    ...(summary === "checksum"
      ? {}
      : { values: Array.from(all, (each) => (Number.isFinite(each) ? each : null)) }),
  });
}

export class DumpRecorder implements RunRecorder, StageRecorder {
  readonly #device: Device;
  readonly #options: RecorderOptions;
  readonly #writer: DumpWriter;
  readonly #images = new AsyncImageWriter();
  #prefix = "";
  #stage = "";
  #numbers: string[] = [];
  #on = false;
  /** Pictures of the iteration under way. */
  #kept = 0;
  /** Seconds on the device's thread, and on this one while nothing else went on. */
  #native = 0;
  #own = 0;

  private constructor(device: Device, options: RecorderOptions, writer: DumpWriter) {
    this.#device = device;
    this.#options = options;
    this.#writer = writer;
  }

  /** @throws {DanceError} `ERR_OUTPUT` when the folder is not empty or cannot be written. */
  static async open(device: Device, options: RecorderOptions, header: DumpHeader): Promise<DumpRecorder> {
    return new DumpRecorder(device, options, await DumpWriter.create(options.folder, header));
  }

  /** Seconds that recording took so far. */
  get seconds(): number {
    return this.#native + this.#own;
  }

  async begin(): Promise<StageRecorder | undefined> {
    return this.#options.level === "stage" ? undefined : this.#start("");
  }

  async iteration(iteration: number): Promise<StageRecorder | undefined> {
    return this.#options.steps.includes(iteration) ? this.#start(`it${iteration}/`) : undefined;
  }

  /** Begins to record; stages have this prefix. */
  async #start(prefix: string): Promise<StageRecorder> {
    const { level, summary, folder } = this.#options;
    this.#prefix = prefix;
    this.#kept = 0;
    // One recorder for the whole dump: its files are numbered.
    if (!this.#on) await runJob(this.#device.handle.observe({ level, summary, folder }));
    else await runJob(this.#device.handle.observeLevel(level));
    this.#on = true;
    return this;
  }

  async stage(name: string, batch = 0): Promise<void> {
    const started = performance.now();
    await this.#drain();
    this.#stage = this.#prefix + name;
    await runJob(
      this.#device.handle.observeStage(this.#stage, batch === 0 ? this.#stage : `${this.#stage}/b${batch}`),
    );
    this.#own += (performance.now() - started) / 1000;
  }

  async tensor(
    name: string,
    role: "input" | "output",
    tensor: NativeTensor,
    rows?: readonly number[],
  ): Promise<void> {
    await runJob(this.#device.handle.observeTensor(name, role, tensor, rows));
  }

  numbers(name: string, values: ArrayLike<number>): void {
    this.#numbers.push(numbersLine(this.#stage, name, values, this.#options.summary));
  }

  async parameters(model: NativeModel, what: "value" | "gradient"): Promise<void> {
    await runJob(model.observe(what));
  }

  async pictures(images: NativeTensor, rows: readonly number[]): Promise<void> {
    const { pictures = 12, folder } = this.#options;
    if (this.#kept >= pictures) return;
    const started = performance.now();
    const all = await toPictures(this.#device.handle, images);
    for (const [i, picture] of all.slice(0, pictures - this.#kept).entries()) {
      const name = `${this.#prefix.replace("/", "-")}${String(rows[i]).padStart(3, "0")}.png`;
      await this.#images.write(join(folder, PICTURES, name), picture);
    }
    this.#kept += all.length;
    this.#own += (performance.now() - started) / 1000;
  }

  async #drain(flush = false): Promise<void> {
    const { lines, seconds } = await runJob(this.#device.handle.observed(flush));
    this.#native = seconds;
    const numbers = this.#numbers;
    this.#numbers = [];
    await this.#writer.write([...lines, ...numbers]);
  }

  async end(): Promise<void> {
    const started = performance.now();
    await this.#drain();
    await this.#writer.flush();
    await this.#images.flush();
    await runJob(this.#device.handle.observeLevel(null));
    this.#own += (performance.now() - started) / 1000;
  }

  /** After a failure: brings what is known so far to the disk, as far as that goes. */
  async salvage(): Promise<void> {
    try {
      if (this.#on) await this.#drain(true);
      await this.#writer.flush();
      await this.#images.flush();
      if (this.#on) await runJob(this.#device.handle.observe(null));
    } catch {
      // The failure itself is told.
    }
    this.#on = false;
  }

  /** Writes the end of the dump. */
  async close(): Promise<void> {
    if (this.#on) await this.#drain(true);
    await this.#images.flush();
    if (this.#on) await runJob(this.#device.handle.observe(null));
    this.#on = false;
    await this.#writer.end(this.seconds);
  }
}
