/**
 * A dump: what one side computed. A folder with `manifest.jsonl` (a header, one line per tensor in the order in which they were made, an
 * end), safetensors files where whole tensors were asked for, and pictures.
 */
import { appendFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { DTypeName } from "../native.js";

export type Level = "stage" | "block" | "op";
export type Summary = "checksum" | "statistics" | "full";

/** Where a dump comes from. What differs here is the cause of a divergence more often than a kernel is. */
export interface DumpHeader {
  danceflux: "dump";
  version: 2;
  /** `danceflux 0.1.0` or `PyTorch 2.13` ... */
  program: string;
  level: Level;
  summary: Summary;
  seed: number;
  device: { name: string; description: string; options: Record<string, unknown> };
  /** Storage dtype of the weights. */
  weights: string;
  versions: Record<string, string>;
  environment: Record<string, string>;
  config: Record<string, unknown>;
  /** Files of the model: name -> bytes and checksum. */
  model: Record<string, string>;
}

/** One tensor. */
export interface DumpRecord {
  stage: string;
  name: string;
  /** The model's block that it belongs to; empty outside of models. */
  block: string;
  /** `linear`, `attention`, ...; `block`, `stage`, `numbers` or `parameter` for what is no op. */
  op: string;
  role: "input" | "output" | "gradient" | "value";
  index: number;
  dtype: DTypeName;
  shape: number[];
  /** CRC-32 of the bytes, eight hexadecimal digits. */
  crc: string;
  count: number;
  /** All of these are missing when only checksums were asked for; over finite elements. */
  nan?: number;
  inf?: number;
  min?: number;
  max?: number;
  mean?: number;
  l2?: number;
  /** Random projections: what tells how far apart two tensors are without the tensors. */
  sketch?: number[];
  /** Where the whole tensor lies. */
  file?: string;
  key?: string;
  /** Numbers that the host held. */
  values?: (number | null)[];
}

export interface Dump {
  folder: string;
  header: DumpHeader;
  records: DumpRecord[];
  /** False: it was cut short, by a full disk or a killed process. */
  complete: boolean;
  /** Seconds that recording took, as far as it was measured. */
  seconds: number;
  /** Picture files, sorted. */
  pictures: string[];
}

/** Characters of the manifest that are kept in memory before they are written. */
const WAITING = 1 << 20;

const MANIFEST = "manifest.jsonl";
export const PICTURES = "pictures";

/** Writes a dump's lines as they come. */
export class DumpWriter {
  readonly folder: string;
  #records = 0;
  #waiting = "";

  private constructor(folder: string) {
    this.folder = folder;
  }

  /** @throws {DanceError} `ERR_OUTPUT` when the folder is not empty or cannot be written. */
  static async create(folder: string, header: DumpHeader): Promise<DumpWriter> {
    try {
      await mkdir(join(folder, PICTURES), { recursive: true });
      const others = (await readdir(folder)).filter((name) => name !== PICTURES);
      if (others.length > 0) {
        throw new DanceError("ERR_OUTPUT", `${folder}: expected an empty folder, got ${others.length} files`);
      }
      await writeFile(join(folder, MANIFEST), `${JSON.stringify(header)}\n`);
    } catch (cause) {
      if (cause instanceof DanceError) throw cause;
      throw new DanceError("ERR_OUTPUT", `${folder}: cannot be written (${(cause as Error).message})`, {
        cause,
      });
    }
    return new DumpWriter(folder);
  }

  /** `lines` are JSON already. @throws {DanceError} `ERR_FILE` when the disk is full; what was written stays readable. */
  async write(lines: readonly string[]): Promise<void> {
    if (lines.length === 0) return;
    this.#waiting += `${lines.join("\n")}\n`;
    this.#records += lines.length;
    if (this.#waiting.length > WAITING) await this.flush();
  }

  /** Brings all lines to the file. */
  async flush(): Promise<void> {
    const waiting = this.#waiting;
    this.#waiting = "";
    if (waiting !== "") await this.#append(waiting);
  }

  async end(seconds: number): Promise<void> {
    await this.flush();
    await this.#append(`${JSON.stringify({ end: true, records: this.#records, seconds })}\n`);
  }

  async #append(text: string): Promise<void> {
    try {
      await appendFile(join(this.folder, MANIFEST), text);
    } catch (cause) {
      throw new DanceError("ERR_FILE", `${this.folder}: cannot be written (${(cause as Error).message})`, {
        cause,
      });
    }
  }
}

function unusable(path: string, why: string): DanceError {
  return new DanceError("ERR_DUMP", `${path}: expected a dump, ${why}`, {
    hint: "make one with danceflux align record",
  });
}

function parsed(path: string, text: string): Record<string, unknown> {
  try {
    const value = JSON.parse(text) as unknown;
    if (value !== null && typeof value === "object") return value as Record<string, unknown>;
  } catch {}
  throw unusable(path, `got ${JSON.stringify(text.slice(0, 40))}`);
}

function checkRecord(path: string, record: Record<string, unknown>): DumpRecord {
  const texts = ["stage", "name", "op", "role", "dtype", "crc"].every(
    (key) => typeof record[key] === "string",
  );
  const safe = record.file === undefined || /^[\w-]+\.safetensors$/.test(String(record.file));
  if (!texts || !safe || !Array.isArray(record.shape) || !Number.isInteger(record.count)) {
    throw unusable(path, `got the line ${JSON.stringify(record).slice(0, 80)}`);
  }
  return record as unknown as DumpRecord;
}

/** What waited in memory when a recording was cut short was never written: its statistics are known all the same. */
async function leaveOutUnwritten(folder: string, records: DumpRecord[]): Promise<void> {
  const written = new Set(await readdir(folder));
  for (const record of records) {
    if (record.file === undefined || written.has(record.file)) continue;
    delete record.file;
    delete record.key;
  }
}

/** Reads a dump. A last line that was cut off is left out. @throws {DanceError} `ERR_DUMP` */
export async function readDump(folder: string): Promise<Dump> {
  const path = join(folder, MANIFEST);
  const text = await readFile(path, "utf8").catch((cause) => {
    throw unusable(path, `it cannot be read (${cause.message})`);
  });
  const lines = text.split("\n");
  lines.pop(); // after the last newline: nothing, or a line that was not finished
  const header = parsed(path, lines[0] ?? "");
  if (header.danceflux !== "dump") throw unusable(path, "got another file");
  if (header.version !== 2) throw unusable(path, `of version 2, got ${header.version}`);
  const records: DumpRecord[] = [];
  let end: Record<string, unknown> | undefined;
  for (const line of lines.slice(1)) {
    const value = parsed(path, line);
    if (value.end === true) end = value;
    else records.push(checkRecord(path, value));
  }
  if (end === undefined) await leaveOutUnwritten(folder, records);
  const pictures = await readdir(join(folder, PICTURES)).catch(() => [] as string[]);
  return {
    folder,
    header: header as unknown as DumpHeader,
    records,
    complete: end !== undefined,
    seconds: Number(end?.seconds ?? 0),
    pictures: pictures.filter((name) => name.endsWith(".png")).sort(),
  };
}
