// npm run bench -- rope-table: three ways to a rope table of doubled angles on an Ascend device; `ours` is each way's time, `theirs` that of
// repeating along the last axis.
import { spawnSync } from "node:child_process";
import { buildNativeBench } from "./native.mjs";

export function run({ report, repeat }) {
  const program = buildNativeBench("danceflux_ascend_rope_table_bench");
  const { status, stdout, stderr } = spawnSync(program, [String(Math.max(repeat, 1))], { encoding: "utf8" });
  if (status !== 0) process.stderr.write(stderr);
  const ways = stdout
    .trim()
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  const slow = ways[0]?.milliseconds ?? null;
  for (const { name, milliseconds, checked } of ways)
    report({ name, ours: milliseconds, theirs: slow, unit: "ms", checked });
  return status === 0 && ways.every(({ checked }) => checked);
}
