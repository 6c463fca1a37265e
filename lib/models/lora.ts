/**
 * Low-rank adapters as files. Written: the layout of PEFT and diffusers, with alpha folded into B. Read: that layout, and kohya's for
 * BFL module names.
 *
 * Legend: r rank, in and out the widths of an adapted layer; A [r, in], B [out, r]; the layer gains (alpha / r) B A.
 */
import { DanceError } from "../errors.js";
import { type NativeFlux, native, runJob } from "../native.js";
import { bflModule, modulesInBfl } from "./flux.js";
import type { FluxConfig } from "./types.js";

interface Matrix {
  rows: number;
  columns: number;
  values: Float32Array;
}

interface Adapter {
  a: Matrix;
  b: Matrix;
  /** alpha / rank */
  scale: number;
}

function readMatrix(path: string, name: string): Matrix {
  const { shape, values } = native().readTensor(path, name);
  const flat = shape.filter((dim, axis) => axis < 2 || dim !== 1); // kohya keeps 1x1 convolutions as such
  if (flat.length !== 2)
    throw new DanceError("ERR_LORA", `${path}: ${name}: expected a matrix, got [${shape.join(", ")}]`);
  return { rows: flat[0]!, columns: flat[1]!, values };
}

function rowsOf(matrix: Matrix, first: number, rows: number): Matrix {
  if (first + rows > matrix.rows) {
    throw new DanceError("ERR_LORA", `adapter: expected at least ${first + rows} rows, got ${matrix.rows}`);
  }
  const { columns, values } = matrix;
  return { rows, columns, values: values.slice(first * columns, (first + rows) * columns) };
}

function halvesSwapped(matrix: Matrix): Matrix {
  const half = matrix.values.length / 2;
  const values = new Float32Array(matrix.values.length);
  values.set(matrix.values.subarray(half));
  values.set(matrix.values.subarray(0, half), half);
  return { ...matrix, values };
}

const PEFT = /^(?:transformer\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight$/;
const KOHYA = /^lora_unet_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)$/;

// The metadata in which PEFT keeps alpha: {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.alpha_pattern": {...}}.
function peftScale(metadata: Record<string, string>, path: string): (module: string, rank: number) => number {
  const text = metadata.lora_adapter_metadata;
  if (text === undefined) return () => 1; // absent means alpha = rank
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(text) as Record<string, unknown>;
  } catch (cause) {
    throw new DanceError("ERR_LORA", `${path}: expected JSON in its adapter metadata`, { cause });
  }
  const field = (name: string) => fields[`transformer.${name}`] ?? fields[name];
  const pattern = (field("alpha_pattern") ?? {}) as Record<string, unknown>;
  const whole = field("lora_alpha");
  return (module, rank) => {
    const own = Object.entries(pattern).find(([key]) => module === key || module.endsWith(`.${key}`))?.[1];
    const alpha = own ?? whole ?? rank;
    if (typeof alpha !== "number" || !Number.isFinite(alpha)) {
      throw new DanceError(
        "ERR_LORA",
        `${path}: lora_alpha: expected a number, got ${JSON.stringify(alpha)}`,
      );
    }
    return alpha / (field("use_rslora") === true ? Math.sqrt(rank) : rank);
  };
}

function readPeft(path: string, names: string[], metadata: Record<string, string>): Map<string, Adapter> {
  const modules = new Set(names.map((name) => PEFT.exec(name)?.[1]).filter((module) => module !== undefined));
  const scaleOf = peftScale(metadata, path);
  const adapters = new Map<string, Adapter>();
  for (const module of modules) {
    const nameOf = (letter: string) =>
      names.find((name) => PEFT.exec(name)?.[1] === module && PEFT.exec(name)?.[2] === letter);
    const [a, b] = [nameOf("A"), nameOf("B")];
    if (!a || !b)
      throw new DanceError(
        "ERR_LORA",
        `${path}: ${module}: expected lora_A and lora_B, got ${a ? "only A" : "only B"}`,
      );
    const matrixA = readMatrix(path, a);
    adapters.set(module, { a: matrixA, b: readMatrix(path, b), scale: scaleOf(module, matrixA.rows) });
  }
  return adapters;
}

// kohya writes dots as underscores; the names of BFL modules hold underscores of their own, so each known one is looked up.
function kohyaModules(config: FluxConfig): Map<string, string> {
  const known = new Map<string, string>();
  const add = (module: string | undefined) => module && known.set(module.replaceAll(".", "_"), module);
  const inDouble = [
    "img_mod.lin",
    "txt_mod.lin",
    "img_attn.qkv",
    "txt_attn.qkv",
    "img_attn.proj",
    "txt_attn.proj",
    "img_mlp.0",
    "img_mlp.2",
    "txt_mlp.0",
    "txt_mlp.2",
  ];
  const inSingle = ["modulation.lin", "linear1", "linear2"];
  for (let i = 0; i < config.numLayers; i++) for (const name of inDouble) add(`double_blocks.${i}.${name}`);
  for (let i = 0; i < config.numSingleLayers; i++)
    for (const name of inSingle) add(`single_blocks.${i}.${name}`);
  for (const embedder of ["timestep", "guidance", "text"]) {
    for (const layer of [1, 2])
      add(bflModule(`time_text_embed.${embedder}_embedder.linear_${layer}`)?.module);
  }
  for (const module of ["x_embedder", "context_embedder", "norm_out.linear", "proj_out"])
    add(bflModule(module)?.module);
  return known;
}

function readKohya(path: string, names: string[], config: FluxConfig): Map<string, Adapter> {
  const known = kohyaModules(config);
  const width = config.attentionHeadDim * config.numAttentionHeads;
  const adapters = new Map<string, Adapter>();
  for (const flat of new Set(
    names.map((name) => KOHYA.exec(name)?.[1]).filter((module) => module !== undefined),
  )) {
    const bfl = known.get(flat);
    if (!bfl) throw new DanceError("ERR_LORA", `${path}: lora_unet_${flat}: expected a module of FLUX`);
    const a = readMatrix(path, `lora_unet_${flat}.lora_down.weight`);
    const b = readMatrix(path, `lora_unet_${flat}.lora_up.weight`);
    const alphaName = `lora_unet_${flat}.alpha`;
    const alpha = names.includes(alphaName) ? native().readTensor(path, alphaName).values[0]! : a.rows;
    for (const { module, rows } of modulesInBfl(bfl)) {
      const cut = rows.widths === undefined ? b : rowsOf(b, rows.first! * width, rows.widths * width);
      adapters.set(module, { a, b: rows.swapHalves ? halvesSwapped(cut) : cut, scale: alpha / a.rows });
    }
  }
  return adapters;
}

/** All adapters of a file, by diffusers module. */
function readAdapters(path: string, config: FluxConfig): Map<string, Adapter> {
  const { tensors, metadata } = native().inspectFile(path);
  const names = tensors.map((tensor) => tensor.name);
  const strange = names.find((name) => !PEFT.test(name) && !KOHYA.test(name));
  if (strange !== undefined || names.length === 0) {
    throw new DanceError(
      "ERR_LORA",
      `${path}: expected an adapter in the PEFT or kohya layout, got ${strange ?? "no tensors"}`,
    );
  }
  return KOHYA.test(names[0]!) ? readKohya(path, names, config) : readPeft(path, names, metadata);
}

// One rank for all: smaller ones are filled up with zeros, which changes nothing.
function paddedRows({ rows, columns, values }: Matrix, wanted: number): Float32Array {
  const padded = new Float32Array(wanted * columns);
  padded.set(values.subarray(0, rows * columns));
  return padded;
}

function paddedColumns({ rows, columns, values }: Matrix, wanted: number, scale: number): Float32Array {
  const padded = new Float32Array(rows * wanted);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++)
      padded[row * wanted + column] = values[row * columns + column]! * scale;
  }
  return padded;
}

/**
 * Adds the adapters of a file to a transformer, at full strength; alpha is folded into B. They are frozen until told otherwise.
 *
 * @returns the adapted modules.
 * @throws {DanceError} `ERR_LORA` for a layout, module or shape that does not fit.
 */
export async function loadLora(
  model: NativeFlux,
  config: FluxConfig,
  path: string,
  signal?: AbortSignal,
): Promise<string[]> {
  try {
    const adapters = readAdapters(path, config);
    const rank = Math.max(...[...adapters.values()].map((adapter) => adapter.a.rows));
    const modules = [...adapters.keys()];
    await runJob(model.addLora({ rank, alpha: rank, modules, seed: 0n }), signal);
    for (const [module, { a, b, scale }] of adapters) {
      if (b.columns !== a.rows) {
        throw new DanceError(
          "ERR_LORA",
          `${path}: ${module}: expected B with ${a.rows} columns, got ${b.columns}`,
        );
      }
      await runJob(model.write(`${module}.lora_A.weight`, paddedRows(a, rank)), signal);
      await runJob(model.write(`${module}.lora_B.weight`, paddedColumns(b, rank, scale)), signal);
    }
    return modules;
  } catch (error) {
    throw signal?.aborted ? error : DanceError.from(error);
  }
}

export const isLoraName = (name: string): boolean => /\.lora_[AB]\.weight$/.test(name);

/**
 * Writes the adapters as `pytorch_lora_weights.safetensors` is laid out, f32, atomically. The factor alpha / rank is folded into B and the
 * metadata say alpha = rank, so that loaders which do not read alpha apply the adapter at its full strength all the same.
 */
export async function saveLora(
  model: NativeFlux,
  path: string,
  lora: { rank: number; alpha: number },
  signal?: AbortSignal,
): Promise<void> {
  const names = model.parameters().map((parameter) => parameter.name);
  const adapters = names.filter(isLoraName);
  const modules = [...new Set(adapters.map((name) => name.replace(/\.lora_[AB]\.weight$/, "")))];
  const metadata = {
    "transformer.r": lora.rank,
    "transformer.lora_alpha": lora.rank,
    "transformer.target_modules": modules,
  };
  const tensors = adapters.map((name) => ({
    parameter: name,
    name: `transformer.${name}`,
    scale: name.endsWith("lora_B.weight") ? lora.alpha / lora.rank : 1,
  }));
  const save = model.save(path, {
    tensors,
    dtype: "f32",
    metadata: { format: "pt", lora_adapter_metadata: JSON.stringify(metadata) },
  });
  await runJob(save, signal);
}
