/** Finding the tensors of a model: single files, sharded files with an index, `.pt` files; and planning where their numbers go. */
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { type LoadItem, type NativeModel, native, runJob } from "../native.js";
import { Fields } from "./fields.js";

/** Where a published tensor lies. */
export interface TensorPlace {
  file: string;
  /** Name in the file. */
  tensor: string;
  dtype: string;
  shape: number[];
}

/** The tensors of a model by name; names are those of the files unless `rename` changed them. */
export type TensorPlaces = Map<string, TensorPlace>;

/** Tensors of some files under one roof. `rename` may drop a tensor by answering undefined. A name in two files: `ERR_WEIGHTS`. */
export function placesIn(
  files: string[],
  rename: (name: string) => string | undefined = (name) => name,
): TensorPlaces {
  const places: TensorPlaces = new Map();
  for (const file of files) {
    for (const { name, dtype, shape } of inspect(file)) {
      const known = rename(name);
      if (known === undefined) continue;
      const earlier = places.get(known);
      if (earlier) {
        throw new DanceError(
          "ERR_WEIGHTS",
          `${known}: expected it once, got it in ${earlier.file} and in ${file}`,
        );
      }
      places.set(known, { file, tensor: name, dtype, shape });
    }
  }
  return places;
}

function inspect(file: string) {
  try {
    return native().inspectFile(file).tensors;
  } catch (error) {
    throw DanceError.from(error);
  }
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

/**
 * The weight files of one folder of a pipeline: `<base>.safetensors`, or the shards that `<base>.safetensors.index.json` names.
 *
 * @throws {DanceError} `ERR_FILE` when there is neither, or a shard is missing; `ERR_WEIGHTS` when the index names a path outside.
 */
export async function weightFiles(folder: string, base: string): Promise<string[]> {
  const single = join(folder, `${base}.safetensors`);
  if (await exists(single)) return [single];
  const index = `${single}.index.json`;
  if (!(await exists(index))) {
    const seen = (await readdir(folder).catch(() => [])).join(", ") || "nothing";
    throw new DanceError("ERR_FILE", `${folder}: expected ${base}.safetensors or its index, found ${seen}`);
  }
  const map = (await Fields.read(index)).raw("weight_map");
  const names = map !== null && typeof map === "object" ? Object.values(map) : [];
  const shards = [...new Set(names)].map(String);
  if (shards.length === 0)
    throw new DanceError("ERR_WEIGHTS", `${index}: expected a weight_map that names files`);
  for (const shard of shards) {
    if (shard !== shard.split(/[/\\]/).at(-1) || shard.startsWith(".")) {
      throw new DanceError(
        "ERR_WEIGHTS",
        `${index}: expected names of files beside it, got ${JSON.stringify(shard)}`,
      );
    }
  }
  return shards.map((shard) => join(folder, shard)).sort();
}

/** The first of `names` that exists in `folder`, as a path. */
export async function firstFile(folder: string, names: string[]): Promise<string | undefined> {
  for (const name of names) {
    const path = join(folder, name);
    if (await exists(path)) return path;
  }
  return undefined;
}

/** Where a parameter's numbers come from: a tensor, or some of its rows, turned as needed. */
export interface Source {
  tensor: string;
  row?: number;
  rows?: number;
  transposed?: boolean;
  swapHalves?: boolean;
}

/** Which source a parameter has; undefined: none by that name. */
export type SourceOf = (parameter: string) => Source | undefined;

/**
 * Loads every parameter of `model`. `sourceOf` maps the model's names to those of `places` (default: the same names).
 *
 * @throws {DanceError} `ERR_WEIGHTS` naming missing tensors, or a shape that disagrees with the config, with both shapes.
 */
export async function loadWeights(
  model: NativeModel,
  places: TensorPlaces,
  sourceOf: SourceOf = (parameter) => ({ tensor: parameter }),
  signal?: AbortSignal,
): Promise<void> {
  const items: LoadItem[] = [];
  const missing: string[] = [];
  for (const { name } of model.parameters()) {
    const source = sourceOf(name);
    const place = source && places.get(source.tensor);
    if (!place) missing.push(source?.tensor ?? name);
    else items.push({ ...source, parameter: name, file: place.file, tensor: place.tensor });
  }
  if (missing.length > 0) throw missingTensors(model.kind, missing, places);
  signal?.throwIfAborted(); // a small model may be read before an abort arrives
  try {
    await runJob(model.load(items), signal);
  } catch (error) {
    throw signal?.aborted ? error : DanceError.from(error);
  }
}

function missingTensors(kind: string, missing: string[], places: TensorPlaces): DanceError {
  const shown =
    missing.slice(0, 5).join(", ") + (missing.length > 5 ? ` and ${missing.length - 5} more` : "");
  const files = [...new Set([...places.values()].map((place) => place.file))].join(", ");
  return new DanceError("ERR_WEIGHTS", `${kind}: expected tensors that are missing: ${shown}`, {
    hint: `looked in ${files || "no files"}`,
  });
}

/** Reads a whole text file that may be missing. */
export async function readOptional(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(() => undefined);
}
