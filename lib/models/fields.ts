/** Reading configuration files that nobody has vouched for. Complaints name the file, the field, what was expected and what was there. */
import { readFile, stat } from "node:fs/promises";
import { DanceError } from "../errors.js";

// No width, vocabulary or size of a model comes near; products of a few still fit in what the engine counts with.
const MOST = 1_000_000;
const MOST_ENTRIES = 16;
/** Largest file that is read: the weight index of a model of a hundred thousand tensors stays below. */
const MAX_FILE_BYTES = 64 * 1024 * 1024;
/** Layers and heads: each is built before a tensor is looked for, so a lying configuration must not ask for too many. */
export const MOST_LAYERS = 1000;

/** A JSON object from a file, read field by field. */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #where: string;

  constructor(values: unknown, where: string) {
    if (values === null || typeof values !== "object" || Array.isArray(values)) {
      throw new DanceError("ERR_CONFIG", `${where}: expected a JSON object, got ${describe(values)}`);
    }
    this.#values = values as Record<string, unknown>;
    this.#where = where;
  }

  /** Reads a JSON file. `ERR_FILE` when it is not there, `ERR_CONFIG` when it is too large or not a JSON object. */
  static async read(path: string): Promise<Fields> {
    let text: string;
    try {
      const { size } = await stat(path);
      if (size > MAX_FILE_BYTES) {
        throw new DanceError("ERR_CONFIG", `${path}: expected at most ${MAX_FILE_BYTES} bytes, got ${size}`);
      }
      text = await readFile(path, "utf8");
    } catch (cause) {
      if (cause instanceof DanceError) throw cause;
      throw new DanceError("ERR_FILE", `${path}: cannot be read (${(cause as Error).message})`, { cause });
    }
    try {
      return new Fields(JSON.parse(text), path);
    } catch (cause) {
      if (cause instanceof DanceError) throw cause;
      throw new DanceError("ERR_CONFIG", `${path}: expected JSON (${(cause as Error).message})`, { cause });
    }
  }

  has(name: string): boolean {
    return this.#values[name] !== undefined && this.#values[name] !== null;
  }

  raw(name: string): unknown {
    return this.#values[name];
  }

  #refuse(name: string, expected: string): never {
    const got = describe(this.#values[name]);
    throw new DanceError("ERR_CONFIG", `${this.#where}: ${name}: expected ${expected}, got ${got}`);
  }

  /** A whole number within 1 .. `most`, or `absent` when the field is missing or null. */
  count(name: string, absent?: number, most: number = MOST): number {
    const value = this.#values[name] ?? absent;
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > most) {
      this.#refuse(name, `a whole number of 1 to ${most}`);
    }
    return value as number;
  }

  /** As count(), but 0 is allowed. */
  countOrZero(name: string, absent?: number, most?: number): number {
    return (this.#values[name] ?? absent) === 0 ? 0 : this.count(name, absent, most);
  }

  number(name: string, absent?: number): number {
    const value = this.#values[name] ?? absent;
    if (typeof value !== "number" || !Number.isFinite(value)) this.#refuse(name, "a finite number");
    return value as number;
  }

  flag(name: string, absent?: boolean): boolean {
    const value = this.#values[name] ?? absent;
    if (typeof value !== "boolean") this.#refuse(name, "true or false");
    return value as boolean;
  }

  text(name: string, absent?: string): string {
    const value = this.#values[name] ?? absent;
    if (typeof value !== "string") this.#refuse(name, "a string");
    return value as string;
  }

  counts(name: string, absent?: number[]): number[] {
    const value = this.#values[name] ?? absent;
    const counts = (entry: unknown) =>
      Number.isInteger(entry) && (entry as number) >= 1 && (entry as number) <= MOST;
    const good =
      Array.isArray(value) && value.length > 0 && value.length <= MOST_ENTRIES && value.every(counts);
    if (!good) this.#refuse(name, `a list of 1 to ${MOST_ENTRIES} whole numbers of 1 to ${MOST}`);
    return value as number[];
  }

  object(name: string): Fields {
    return new Fields(this.#values[name], `${this.#where}: ${name}`);
  }
}

/** A short description of a value for an error message. */
export function describe(value: unknown): string {
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (value !== null && typeof value === "object") return "an object";
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
