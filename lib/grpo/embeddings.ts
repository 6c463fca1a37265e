/**
 * Embeddings of prompts: computed once, kept on the host (or on disk), uploaded for the iteration that needs them. So the text encoders'
 * memory is free while training, however many prompts there are.
 *
 * A cached file holds, after a line of JSON with both shapes, the text embedding and the pooled one as little-endian f32.
 */
import { createHash } from "node:crypto";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { DanceError } from "../errors.js";
import type { Pipeline, PromptEmbedding } from "../models/types.js";
import { type NativeTensor, runJob } from "../native.js";

interface HostTensor {
  shape: number[];
  values: Float32Array;
}

interface HostEmbedding {
  text: HostTensor;
  pooled: HostTensor;
}

async function toHost(tensor: NativeTensor, signal?: AbortSignal): Promise<HostTensor> {
  return { shape: tensor.shape, values: await runJob(tensor.download(), signal) };
}

const bytesOf = ({ values }: HostTensor) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

function encodeFile({ text, pooled }: HostEmbedding): Uint8Array {
  const head = Buffer.from(`${JSON.stringify({ text: text.shape, pooled: pooled.shape })}\n`);
  return Buffer.concat([head, bytesOf(text), bytesOf(pooled)]);
}

function decodeFile(bytes: Buffer, path: string): HostEmbedding {
  const refuse = (what: string): never => {
    throw new DanceError("ERR_FILE", `${path}: expected a cached embedding, got ${what}`, {
      hint: "remove the file",
    });
  };
  const end = bytes.subarray(0, 1024).indexOf(10);
  if (end < 0) return refuse("no header");
  let head: { text?: unknown; pooled?: unknown } | null;
  try {
    head = JSON.parse(bytes.toString("utf8", 0, end)) as typeof head;
  } catch {
    return refuse("a header that is not JSON");
  }
  let offset = end + 1;
  const tensor = (shape: unknown): HostTensor => {
    const good = Array.isArray(shape) && shape.every((dim) => Number.isInteger(dim) && dim > 0);
    const count = good ? (shape as number[]).reduce((product, dim) => product * dim, 1) : 0;
    if (!good || offset + count * 4 > bytes.length) return refuse("shapes that do not fit its size");
    const values = new Float32Array(count);
    new Uint8Array(values.buffer).set(bytes.subarray(offset, offset + count * 4));
    offset += count * 4;
    return { shape: shape as number[], values };
  };
  const embedding = { text: tensor(head?.text), pooled: tensor(head?.pooled) };
  return offset === bytes.length ? embedding : refuse("bytes too many");
}

/** Embeddings of a run's prompts. */
export class EmbeddingStore {
  readonly #pipeline: Pipeline;
  readonly #folder: string | undefined;
  readonly #host = new Map<string, HostEmbedding>();

  /** `folder`: where embeddings are kept on disk; without one they stay in host memory. */
  constructor(pipeline: Pipeline, folder?: string) {
    this.#pipeline = pipeline;
    this.#folder = folder;
  }

  #path(prompt: string): string {
    const { folder, weights } = this.#pipeline;
    // The whole path: the same short one means another model in another working folder.
    const key = createHash("sha256").update(`${resolve(folder)}\0${weights}\0${prompt}`);
    return join(this.#folder!, `${key.digest("hex").slice(0, 32)}.embedding`);
  }

  /** Computes what is not there yet. `onProgress` is told after each prompt, and ends the work by answering false. */
  async prepare(
    prompts: string[],
    signal?: AbortSignal,
    onProgress?: (done: number, all: number) => unknown,
  ): Promise<void> {
    if (this.#folder) await mkdir(this.#folder, { recursive: true });
    const distinct = [...new Set(prompts)];
    for (const [i, prompt] of distinct.entries()) {
      if (!(await this.#has(prompt))) {
        const [embedding] = await this.#pipeline.encodePrompts([prompt], signal);
        await this.#keep(prompt, embedding!, signal);
      }
      if (onProgress?.(i + 1, distinct.length) === false) return;
    }
  }

  async #has(prompt: string): Promise<boolean> {
    if (this.#host.has(prompt)) return true;
    if (!this.#folder) return false;
    return readFile(this.#path(prompt)).then(
      (bytes) => decodeFile(bytes, this.#path(prompt)) !== undefined,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return false;
        throw error;
      },
    );
  }

  async #keep(prompt: string, embedding: PromptEmbedding, signal?: AbortSignal): Promise<void> {
    using onDevice = embedding;
    const host = {
      text: await toHost(onDevice.text, signal),
      pooled: await toHost(onDevice.pooled, signal),
    };
    if (!this.#folder) {
      this.#host.set(prompt, host);
      return;
    }
    const path = this.#path(prompt);
    const temporary = `${path}.tmp-${process.pid}`;
    await writeFile(temporary, encodeFile(host));
    await rename(temporary, path);
  }

  /** On the device; the caller disposes it. The prompt must have been prepared. */
  async upload(prompt: string, signal?: AbortSignal): Promise<PromptEmbedding> {
    const host = this.#host.get(prompt) ?? decodeFile(await readFile(this.#path(prompt)), this.#path(prompt));
    const { handle } = this.#pipeline.device;
    const text = await runJob(handle.upload(host.text.values, host.text.shape), signal);
    const pooled = await runJob(handle.upload(host.pooled.values, host.pooled.shape), signal).catch(
      (error) => {
        text.dispose();
        throw error;
      },
    );
    return {
      text,
      pooled,
      [Symbol.dispose]() {
        text.dispose();
        pooled.dispose();
      },
    };
  }
}
