/** What a dump holds of one iteration, brought back to a device. */
import { join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { Pipeline } from "../models/types.js";
import { type NativeTensor, runJob } from "../native.js";
import type { Dump, DumpRecord } from "./dump.js";
import { readFloats, TensorFile } from "./tensor_source.js";

const keyOf = (stage: string, name: string, role: string): string => `${stage}|${name}|${role}`;

export class RecordedTensors implements AsyncDisposable {
  readonly #dump: Dump;
  readonly #iteration: number;
  readonly #records: Map<string, DumpRecord>;
  readonly #files = new Map<string, Promise<TensorFile>>();

  constructor(dump: Dump, iteration: number) {
    this.#dump = dump;
    this.#iteration = iteration;
    this.#records = new Map(
      dump.records
        .filter(({ op }) => op === "stage" || op === "numbers" || op === "parameter")
        .map((record) => [keyOf(record.stage, record.name, record.role), record]),
    );
  }

  #record(stage: string, name: string, role: string): DumpRecord {
    const key = keyOf(`it${this.#iteration}/${stage}`, name, role);
    const record = this.#records.get(key);
    if (record) return record;
    throw new DanceError(
      "ERR_DUMP",
      `${this.#dump.folder}: expected ${name} of it${this.#iteration}/${stage}, got none`,
    );
  }

  async #floats(record: DumpRecord): Promise<Float32Array> {
    const { file, key } = record;
    if (file === undefined || key === undefined)
      throw new DanceError(
        "ERR_DUMP",
        `${this.#dump.folder}: expected all of ${record.name}, got its statistics`,
      );
    const open = this.#files.get(file) ?? TensorFile.open(join(this.#dump.folder, file));
    this.#files.set(file, open);
    return readFloats((await open).tensor(key));
  }

  numbers(stage: string, name: string): number[] {
    return (this.#record(stage, name, "value").values ?? []).map((value) => value ?? Number.NaN);
  }

  async upload(device: Device, stage: string, name: string, role: "input" | "output"): Promise<NativeTensor> {
    const record = this.#record(stage, name, role);
    return runJob(device.handle.upload(await this.#floats(record), record.shape));
  }

  /** Rows that were recorded one by one, as one tensor. */
  async uploadRows(
    device: Device,
    stage: string,
    name: string,
    role: "input" | "output",
    rows: number[],
  ): Promise<NativeTensor> {
    const records = rows.map((row) => this.#record(stage, `${name}.${row}`, role));
    const parts = await Promise.all(records.map((record) => this.#floats(record)));
    const [first] = parts;
    const all = new Float32Array(first!.length * rows.length);
    for (const [i, part] of parts.entries()) all.set(part, i * first!.length);
    return runJob(device.handle.upload(all, [rows.length, ...records[0]!.shape.slice(1)]));
  }

  /** The weights that the iteration began with: what the one before it ended with. */
  async setWeights(pipeline: Pipeline): Promise<void> {
    const before = new RegExp(`^it${this.#iteration - 1}/update/u(\\d+)/weights$`);
    const numbers = [...this.#records.values()].map(({ stage }) => Number(before.exec(stage)?.[1] ?? -1));
    const last = Math.max(-1, ...numbers);
    if (last < 0) {
      throw new DanceError(
        "ERR_DUMP",
        `${this.#dump.folder}: expected the weights after iteration ${this.#iteration - 1}, got none`,
        { hint: "record that iteration too" },
      );
    }
    const stage = `it${this.#iteration - 1}/update/u${last}/weights`;
    for (const record of this.#records.values()) {
      if (record.stage !== stage || record.op !== "parameter") continue;
      const values = await this.#floats(record);
      await runJob(pipeline.transformer.write(record.name.replace(/^flux\./, ""), values));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#files.values())
      await file.then(
        (open) => open[Symbol.asyncDispose](),
        () => {}, // told where it was opened
      );
  }
}
