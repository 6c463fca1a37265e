/** What a dump says about where it comes from. */
import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { cpus, release } from "node:os";
import { join, relative } from "node:path";
import type { Device } from "../device.js";
import type { TrainConfig } from "../grpo/config.js";
import type { Pipeline } from "../models/types.js";
import { native } from "../native.js";
import { version } from "../version.js";
import type { DumpHeader, Level, Summary } from "./dump.js";

/** Variables that change what accelerators and their libraries compute. */
const TELLING =
  /^(DANCEFLUX_|HCCL_|ASCEND_|ACL_|LCCL_|ATB_|CLOSE_MATMUL_K_SHIFT|CUBLAS_|CUDA_|NCCL_|NVIDIA_TF32|OMP_NUM_THREADS)/;
const SECRET = /token|key|secret|password/i;

export function tellingEnvironment(environment: NodeJS.ProcessEnv = process.env): Record<string, string> {
  const entries = Object.entries(environment).filter(([name]) => TELLING.test(name) && !SECRET.test(name));
  return Object.fromEntries(entries.sort() as [string, string][]);
}

/** Files that are read whole for their checksum; of larger ones the ends count. */
const WHOLE = 64 << 20;

async function fingerprint(path: string): Promise<string> {
  const { size } = await stat(path);
  if (size <= WHOLE) {
    const hash = createHash("sha256").update(await readFile(path));
    return `${size} bytes, sha256 ${hash.digest("hex").slice(0, 16)}`;
  }
  const { open } = await import("node:fs/promises");
  const file = await open(path, "r");
  try {
    const ends = Buffer.alloc(2 << 20);
    await file.read(ends, 0, 1 << 20, 0);
    await file.read(ends, 1 << 20, 1 << 20, size - (1 << 20));
    return `${size} bytes, ends ${createHash("sha256").update(ends).digest("hex").slice(0, 16)}`;
  } finally {
    await file.close();
  }
}

/** Checksums of the files of a model's folder that decide what it computes. */
export async function modelFiles(folder: string): Promise<Record<string, string>> {
  const names = await readdir(folder, { recursive: true }).catch(() => [] as string[]);
  const wanted = names
    .filter((name) => /\.(safetensors|json)$/.test(name) && !/(^|[/\\])\./.test(name))
    .sort();
  const files: Record<string, string> = {};
  for (const name of wanted) files[relative("", name)] = await fingerprint(join(folder, name));
  return files;
}

export interface HeaderFacts {
  level: Level;
  summary: Summary;
  seed: number;
  device: Device;
  pipeline: Pipeline;
  config: TrainConfig;
}

export async function headerOf(facts: HeaderFacts): Promise<DumpHeader> {
  const { level, summary, seed, device, pipeline, config } = facts;
  return {
    danceflux: "dump",
    version: 2,
    program: `danceflux ${version()}`,
    level,
    summary,
    seed,
    device: { name: device.name, description: device.description, options: { ...device.options } },
    weights: pipeline.weights,
    versions: {
      danceflux: version(),
      addon: native().version,
      node: process.version,
      system: `${process.platform} ${process.arch} ${release()}`,
      processor: cpus()[0]?.model.trim() ?? "unknown",
    },
    environment: tellingEnvironment(),
    config: JSON.parse(JSON.stringify(config)) as Record<string, unknown>,
    model: await modelFiles(pipeline.folder),
  };
}
