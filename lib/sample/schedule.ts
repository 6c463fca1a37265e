/**
 * Noise levels and what the network is told about them.
 *
 * Levels go from 1 (noise) to 0 (picture) and are float32, as every implementation that this one is compared with keeps them; where a
 * last bit decides (truncated timesteps), float32 is emulated with Math.fround step by step.
 */
import { DanceError } from "../errors.js";
import type { SchedulerConfig } from "../models/types.js";

const f32 = Math.fround;

/** t_i = 1 - i / n as PyTorch's float32 linspace makes it: counted from the nearer end, with a fused multiply-add. */
function descending(steps: number): number[] {
  const step = f32(-1 / steps);
  const half = Math.floor((steps + 1) / 2);
  return Array.from({ length: steps + 1 }, (_, i) => f32(i < half ? 1 + step * i : -step * (steps - i)));
}

/**
 * sigma_0 .. sigma_n of n steps. With a fixed shift s: s t / (1 + (s - 1) t), DanceGRPO's grid. With `"dynamic"`: FLUX's own, shifted by
 * e^mu where mu grows linearly with the number of image tokens.
 *
 * @param tokens image tokens (grid rows times columns); used by the dynamic shift only.
 */
export function sigmaSchedule(
  steps: number,
  shift: number | "dynamic",
  tokens: number,
  scheduler?: SchedulerConfig,
): Float32Array {
  if (!Number.isInteger(steps) || steps < 1)
    throw new DanceError("ERR_OPTION", `steps: expected 1 or more, got ${steps}`);
  if (shift === "dynamic") return dynamicSchedule(steps, tokens, scheduler);
  if (!(shift > 0))
    throw new DanceError("ERR_OPTION", `shift: expected a number above 0 or "dynamic", got ${shift}`);
  return Float32Array.from(descending(steps), (t) => f32(f32(shift * t) / f32(1 + f32(f32(shift - 1) * t))));
}

function dynamicSchedule(steps: number, tokens: number, scheduler?: SchedulerConfig): Float32Array {
  const { baseShift = 0.5, maxShift = 1.15, baseImageSeqLen = 256, maxImageSeqLen = 4096 } = scheduler ?? {};
  const slope = (maxShift - baseShift) / (maxImageSeqLen - baseImageSeqLen);
  const factor = Math.exp(baseShift + slope * (tokens - baseImageSeqLen));
  const levels = new Float32Array(steps + 1);
  for (let i = 0; i < steps; i++) {
    // linspace(1, 1/n, n), then e^mu / (e^mu + (1/s - 1))
    const level = f32(steps === 1 ? 1 : 1 + (i * (1 / steps - 1)) / (steps - 1));
    levels[i] = f32(factor / f32(factor + f32(f32(1 / level) - 1)));
  }
  return levels;
}

/** Nearest bf16 value, ties to even. */
export function roundToBf16(value: number): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  bits[0] = (bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0]!;
}

export interface TimestepOptions {
  /** Truncate sigma * 1000 to a whole number first, as DanceGRPO's trainer does. */
  integer: boolean;
  /** Round to bf16 before and after multiplying by 1000, as diffusers does when it computes in bf16. */
  bf16: boolean;
}

/** What the network sees for a noise level: 0 to 1000. */
export function networkTimestep(sigma: number, { integer, bf16 }: TimestepOptions): number {
  const level = integer ? f32(Math.trunc(f32(f32(sigma) * 1000)) / 1000) : f32(sigma);
  return bf16 ? roundToBf16(roundToBf16(level) * 1000) : f32(level * 1000);
}

/** What the network sees for a guidance scale: times 1000, through bf16 when asked (3.5 becomes 3504). */
export function networkGuidance(guidance: number, bf16: boolean): number {
  return bf16 ? roundToBf16(roundToBf16(guidance) * 1000) : f32(f32(guidance) * 1000);
}
