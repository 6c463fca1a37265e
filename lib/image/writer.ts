// Pictures to files while the caller goes on: a bounded queue, compression in libuv's threads, whole files or none.

import { randomBytes } from "node:crypto";
import { mkdir, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { DanceError } from "../errors.js";
import { imageError, type Picture } from "./picture.js";
import { encodePng, type PngOptions } from "./png_write.js";

export interface ImageWriterOptions {
  /** Pictures encoded and written at the same time. Default 2: libuv has four threads for everything. */
  concurrency?: number;
  /** Pictures that may wait or be in work before {@link AsyncImageWriter.write} makes its caller wait. Default 16. */
  queue?: number;
  /** Force every file to the disk before it gets its name. Default false. */
  fsync?: boolean;
}

export interface ImageWriterStats {
  /** Pictures on disk. */
  written: number;
  /** Their size in bytes. */
  bytes: number;
  /** Pictures that wait or are in work. */
  pending: number;
}

interface Task {
  path: string;
  picture: Picture;
  options: PngOptions;
}

/**
 * Writes PNG files in the background. The first failure stops it: everything that waits is dropped, `write` and
 * `flush` reject with that failure from then on, so that a run ends instead of losing pictures.
 */
export class AsyncImageWriter {
  readonly #concurrency: number;
  readonly #limit: number;
  readonly #fsync: boolean;
  readonly #waiting: Task[] = [];
  readonly #folders = new Set<string>();
  #running = 0;
  #written = 0;
  #bytes = 0;
  #failure: DanceError | undefined;
  /** Called whenever something finishes. */
  #listeners: (() => void)[] = [];

  constructor(options: ImageWriterOptions = {}) {
    this.#concurrency = atLeastOne("concurrency", options.concurrency ?? 2);
    this.#limit = atLeastOne("queue", options.queue ?? 16);
    this.#fsync = options.fsync ?? false;
  }

  get stats(): ImageWriterStats {
    return { written: this.#written, bytes: this.#bytes, pending: this.#pending };
  }

  get #pending(): number {
    return this.#waiting.length + this.#running;
  }

  /**
   * Takes a picture; resolves as soon as there is room in the queue, long before the file exists. The picture's bytes
   * belong to the writer until `flush`: do not change them. Folders are made as needed; the file appears under its
   * name only when it is complete. Rejects with an earlier failure (DanceError `ERR_IMAGE`).
   */
  async write(path: string, picture: Picture, options: PngOptions = {}): Promise<void> {
    while (this.#pending >= this.#limit && !this.#failure) await this.#nextChange();
    if (this.#failure) throw this.#failure;
    this.#waiting.push({ path, picture, options });
    this.#start();
  }

  /** Resolves when every picture taken so far is on disk; rejects with the first failure. */
  async flush(): Promise<void> {
    while (this.#pending > 0) await this.#nextChange();
    if (this.#failure) throw this.#failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.flush();
  }

  #nextChange(): Promise<void> {
    return new Promise((resolve) => this.#listeners.push(resolve));
  }

  #start(): void {
    while (this.#running < this.#concurrency) {
      const task = this.#waiting.shift();
      if (!task) return;
      this.#running++;
      void this.#run(task);
    }
  }

  async #run(task: Task): Promise<void> {
    try {
      this.#bytes += await this.#save(task);
      this.#written++;
    } catch (cause) {
      this.#failure ??= asImageError(task.path, cause);
      this.#waiting.length = 0;
    }
    this.#running--;
    this.#start();
    const listeners = this.#listeners;
    this.#listeners = [];
    for (const listener of listeners) listener();
  }

  async #save({ path, picture, options }: Task): Promise<number> {
    const png = await encodePng(picture, options);
    const folder = dirname(path);
    if (!this.#folders.has(folder)) await mkdir(folder, { recursive: true });
    this.#folders.add(folder);
    await writeWhole(path, png, this.#fsync);
    return png.length;
  }
}

/** Writes under a temporary name beside the target, then renames: readers see the old file or the new one. */
async function writeWhole(path: string, bytes: Uint8Array, fsync: boolean): Promise<void> {
  const temporary = `${path}.${process.pid}-${randomBytes(6).toString("hex")}.tmp`;
  try {
    const file = await open(temporary, "wx");
    try {
      await file.writeFile(bytes);
      if (fsync) await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => {});
    throw cause;
  }
}

function asImageError(path: string, cause: unknown): DanceError {
  if (cause instanceof DanceError) return cause;
  const { message, code } = cause as NodeJS.ErrnoException;
  const hint = code === "ENOSPC" ? "Free some space on that disk and resume." : undefined;
  return imageError(path, `cannot be written (${message})`, hint === undefined ? { cause } : { cause, hint });
}

function atLeastOne(name: string, value: number): number {
  if (Number.isInteger(value) && value >= 1) return value;
  throw imageError("AsyncImageWriter", `${name}: expected a whole number of 1 or more, got ${value}`);
}
