// Every row of the op table, checked against the reference backend and timed by a program of the C++ tests.
import { spawnSync } from "node:child_process";
import { buildNativeBench } from "./native.mjs";

export async function run({ report, threads }) {
  const options = JSON.stringify({ threads });
  const { status, stdout } = spawnSync(buildNativeBench("danceflux_op_bench"), ["--options", options], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 1 << 26,
  });
  for (const line of stdout.trim().split("\n")) {
    const { name, ours, unit, checked } = JSON.parse(line);
    report({ name: `ops/${name}`, ours, unit, checked });
  }
  return status === 0;
}
