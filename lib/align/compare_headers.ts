/** How two sides were set up differently: told first, since it is the cause more often than a kernel is. */
import type { DumpHeader } from "./dump.js";

export interface HeaderDifference {
  /** Dotted name: `config.sampling.steps`. */
  name: string;
  a: string;
  b: string;
  /** `setup`: the two do not compute the same thing. `side`: what a comparison is about, or may explain roundings. */
  kind: "setup" | "side";
}

function* flat(value: unknown, name: string): Generator<[string, string]> {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    for (const [key, entry] of Object.entries(value))
      yield* flat(entry, name === "" ? key : `${name}.${key}`);
  } else if (value !== undefined) {
    yield [name, typeof value === "string" ? value : JSON.stringify(value)];
  }
}

/** Where it runs, where it writes and what makes no difference by promise. */
const PLACES =
  /^config\.(output|device|model\.path|model\.dtype|sampling\.batch|learning\.(microbatch|recompute)|embeddingCache|evaluation|iterations)\b/;

export function headerDifferences(a: DumpHeader, b: DumpHeader): HeaderDifference[] {
  const [left, right] = [a, b].map(
    ({ seed, config, model, weights, versions, environment, device, program }) =>
      new Map(flat({ seed, config, model, weights, versions, environment, device, program }, "")),
  ) as [Map<string, string>, Map<string, string>];
  const differences: HeaderDifference[] = [];
  for (const name of new Set([...left.keys(), ...right.keys()])) {
    const [x = "(absent)", y = "(absent)"] = [left.get(name), right.get(name)];
    // The device is told under its own name; where a run writes tells nothing.
    if (x === y || /^config\.(device|output)\b/.test(name)) continue;
    // What only one of two programs has says nothing.
    const absent = x === "(absent)" || y === "(absent)";
    if (absent && a.program.split(" ")[0] !== b.program.split(" ")[0]) continue;
    const setup = /^(seed$|config\.|model\.)/.test(name) && !PLACES.test(name);
    differences.push({ name, a: x, b: y, kind: setup ? "setup" : "side" });
  }
  return differences.sort((x, y) => (x.kind === y.kind ? 0 : x.kind === "setup" ? -1 : 1));
}
