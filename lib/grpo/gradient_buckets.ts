/** The flat buckets that gradients lie in, from the model's sizes: as native/train/gradient_layout.cpp cuts them. */
import { elementsOf, type StoredTensor } from "../models/flux_shapes.js";

/** Elements: where a tensor may begin in its bucket, and what a bucket is a multiple of per rank. */
const ALIGNMENT = 32;
const CHUNK = 1024;

const roundUp = (count: number, step: number) => Math.ceil(count / step) * step;
const moduleOf = ({ parts }: StoredTensor) => parts[0]!.name.replace(/[^.]*$/, "");

/** The tensors of one layer stay in order; layers come last first, as backward finishes them. */
function inOrderOfBackward(tensors: readonly StoredTensor[]): StoredTensor[] {
  const layers: StoredTensor[][] = [];
  for (const tensor of tensors) {
    const last = layers.at(-1);
    if (last && moduleOf(last[0]!) === moduleOf(tensor)) last.push(tensor);
    else layers.push([tensor]);
  }
  return layers.reverse().flat();
}

/**
 * Sizes of the buckets in bytes of f32 gradients, padding included.
 *
 * @param trained Tensors that have a gradient, in the model's order.
 * @param mixed Weights of more than one dtype are stored, so that matrices and the rest are in buckets of their own.
 */
export function gradientBuckets(
  trained: readonly StoredTensor[],
  { bucketMiB, world, mixed }: { bucketMiB: number; world: number; mixed: boolean },
): number[] {
  const limit = Math.max(1, Math.floor((bucketMiB * 2 ** 20) / 4));
  const open = new Map<boolean, number>();
  const closed: number[] = [];
  for (const tensor of inOrderOfBackward(trained)) {
    const kind = mixed && tensor.matrix;
    let size = open.get(kind) ?? 0;
    if (size > 0 && size + elementsOf(tensor) > limit) {
      closed.push(size);
      size = 0;
    }
    open.set(kind, size + roundUp(elementsOf(tensor), ALIGNMENT));
  }
  return [...closed, ...open.values()].map((size) => roundUp(size, CHUNK * world) * 4);
}
