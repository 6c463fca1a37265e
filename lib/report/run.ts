/** What a run folder tells: its configuration, its metrics, its pictures. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import type { SavedPicture } from "../grpo/evaluation.js";
import type { EvaluationMetrics, IterationMetrics, MetricsLine } from "../grpo/metrics.js";

/** Pictures of one evaluation. */
export interface EvaluationPictures {
  iteration: number;
  folder: string;
  pictures: SavedPicture[];
}

export interface Run {
  folder: string;
  config: TrainConfig;
  iterations: IterationMetrics[];
  evaluations: EvaluationMetrics[];
  /** Oldest first. */
  pictures: EvaluationPictures[];
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw new DanceError("ERR_FILE", `${path}: cannot be read (${(cause as Error).message})`, {
      cause,
      hint: "a run folder has config.json and metrics.jsonl",
    });
  }
}

function parse<T>(text: string, where: string): T {
  try {
    return JSON.parse(text) as T;
  } catch (cause) {
    throw new DanceError("ERR_FILE", `${where}: expected JSON (${(cause as Error).message})`, { cause });
  }
}

async function readMetrics(path: string): Promise<MetricsLine[]> {
  const lines = (await readText(path)).split("\n");
  // A run that is under way, or was killed, may end in half a line.
  lines.pop();
  return lines.map((line, i) => parse<MetricsLine>(line, `${path}:${i + 1}`));
}

const isSaved = (entry: unknown): entry is SavedPicture => {
  const { file, prompt, scores } = (entry ?? {}) as Partial<SavedPicture>;
  // A name, never a path: what it names goes into the report.
  return (
    typeof file === "string" &&
    /^\w[\w.-]*\.png$/.test(file) &&
    typeof prompt === "string" &&
    scores !== null &&
    typeof scores === "object"
  );
};

async function readPictures(folder: string, iteration: number): Promise<EvaluationPictures> {
  const path = join(folder, "pictures.json");
  const text = await readFile(path, "utf8").catch(() => "[]");
  const pictures = parse<unknown>(text, path);
  if (!Array.isArray(pictures) || !pictures.every(isSaved)) {
    throw new DanceError("ERR_FILE", `${path}: expected a list of pictures with file, prompt and scores`);
  }
  return { iteration, folder, pictures };
}

/** Reads a run folder, finished or not. @throws {DanceError} `ERR_FILE` when it is none. */
export async function readRun(folder: string): Promise<Run> {
  const path = join(folder, "config.json");
  const { config } = parse<{ config?: TrainConfig }>(await readText(path), path);
  if (!config?.output || !config.sampling) {
    throw new DanceError("ERR_FILE", `${path}: expected the configuration of a run`);
  }
  const lines = await readMetrics(join(folder, "metrics.jsonl"));
  const evaluationFolder = join(folder, "evaluation");
  const names = (await readdir(evaluationFolder).catch(() => [])).filter((name) => /^\d+$/.test(name)).sort();
  const pictures: EvaluationPictures[] = [];
  for (const name of names) pictures.push(await readPictures(join(evaluationFolder, name), Number(name)));
  return {
    folder,
    config,
    iterations: lines.filter((line) => line.type === "iteration"),
    evaluations: lines.filter((line) => line.type === "evaluation"),
    pictures: pictures.filter((entry) => entry.pictures.length > 0),
  };
}
