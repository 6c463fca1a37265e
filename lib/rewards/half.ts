/** Rounding to half precision. */

const MANTISSA_BITS = 10;
const LEAST_EXPONENT = -14;
const LARGEST = 65504;

/** The nearest number that 16 bits hold, ties to even, as `torch.Tensor.half()`; beyond 65504 and a bit: Infinity. */
export function roundToF16(value: number): number {
  const size = Math.abs(value);
  if (!(size > 0) || size === Number.POSITIVE_INFINITY) return value;
  // Whatever log2 rounds to near a power of two: 2 ** exponent <= size < 2 ** (exponent + 1).
  let exponent = Math.floor(Math.log2(size));
  if (2 ** exponent > size) exponent--;
  else if (2 ** (exponent + 1) <= size) exponent++;
  const unit = 2 ** (Math.max(exponent, LEAST_EXPONENT) - MANTISSA_BITS);
  // Doubles near this number lie one unit apart, so the addition rounds, to even.
  const anchor = 1.5 * 2 ** 52 * unit;
  const rounded = size + anchor - anchor;
  return Math.sign(value) * (rounded > LARGEST ? Number.POSITIVE_INFINITY : rounded);
}
