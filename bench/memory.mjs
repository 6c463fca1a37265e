// Peak memory of a process: FLUX-width blocks in f32 and bf16, and PyTorch's in f32. Outputs are checked as in `wide`.
import { GIB, measure } from "./wide.mjs";

export async function run({ report, threads }) {
  const { ours, theirs } = await measure(threads, 1);
  for (const [dtype, side] of Object.entries(ours)) {
    for (const pass of ["forward", "backward"]) {
      const name = `memory/${pass === "forward" ? "forward" : "forward+backward"} ${dtype}`;
      report({
        name,
        ours: side[`${pass}Peak`] / GIB,
        theirs: theirs[`${pass}Peak`] / GIB,
        unit: "GiB",
        checked: true,
      });
    }
  }
}
