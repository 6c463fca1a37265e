/**
 * How far apart two right results may be: |a - b| / |b|, by the coarser storage of the two sides and the kind of op. A tolerance belongs to
 * a dtype and a family, never to a case.
 *
 * They were chosen from what a harmless change does: another order of a sum moves an f32 product of a few thousand terms by about 1e-6;
 * rounding weights to bf16 moves one by about 2e-3, to f16 by about 3e-4.
 */
import type { DumpRecord } from "./dump.js";

export type Family = "elementwise" | "norm" | "product" | "block" | "stage" | "gradient" | "weights";
export type Precision = "f32" | "f16" | "bf16";

export const TOLERANCES: Readonly<Record<Precision, Readonly<Record<Family, number>>>> = {
  f32: {
    elementwise: 1e-5,
    norm: 2e-5,
    product: 5e-5,
    block: 1e-4,
    stage: 1e-3,
    gradient: 1e-3,
    weights: 1e-3,
  },
  f16: {
    elementwise: 2e-3,
    norm: 2e-3,
    product: 3e-3,
    block: 1e-2,
    stage: 3e-2,
    gradient: 3e-2,
    weights: 5e-3,
  },
  bf16: {
    elementwise: 1e-2,
    norm: 1e-2,
    product: 2e-2,
    block: 5e-2,
    stage: 1e-1,
    gradient: 1e-1,
    weights: 1e-2,
  },
};

/**
 * An op whose inputs already differ is to blame when it makes their error this many times larger. Right ops do so up to about 15 times: a
 * product of a few large inputs that cancel.
 */
export const GROWTH = 30;

type Judged = Pick<DumpRecord, "op" | "role" | "block">;

const PRODUCTS = new Set(["linear", "linear_activation", "matmul", "attention", "conv2d"]);
const NORMS =
  /^(modulated_norm|layer_norm|rms_norm|group_norm|group_norm_silu|qk_norm_rope|rope|softmax|reduce|flow_log_prob)$/;

export function familyOf({ op, role, block }: Judged): Family {
  if (role === "gradient") return "gradient";
  if (op === "parameter") return "weights";
  // What reaches a block came through everything before it, and a whole model (it is in no block) is as much as a stage.
  if (op === "block") return role === "input" || block === "" ? "stage" : "block";
  if (op === "stage" || op === "numbers") return "stage";
  if (PRODUCTS.has(op)) return "product";
  return NORMS.test(op) ? "norm" : "elementwise";
}

/** The coarser of some dtypes. */
export function coarsest(dtypes: readonly string[]): Precision {
  if (dtypes.includes("bf16")) return "bf16";
  return dtypes.includes("f16") ? "f16" : "f32";
}

export interface Tolerance {
  family: Family;
  precision: Precision;
  limit: number;
}

export function toleranceOf(record: Judged, dtypes: readonly string[]): Tolerance {
  const family = familyOf(record);
  const precision = coarsest(dtypes);
  return { family, precision, limit: TOLERANCES[precision][family] };
}
