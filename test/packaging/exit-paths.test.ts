import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../lib/native-loader.js";

const limit = 20_000;

/** Runs one case in a process of its own: the point is how that process ends. */
function runCase(name: string) {
  const script = join(packageRoot, "test", "packaging", "exit-case.mjs");
  const result = spawnSync(process.execPath, [script, name], { encoding: "utf8", timeout: limit });
  expect(result.signal, result.stderr).toBeNull();
  return { status: result.status, out: result.stdout.trim(), err: result.stderr };
}

// Each of these once hung, or took the whole process down, in some addon.
describe("a process ends as it was told, with minutes of jobs queued", () => {
  it.each([
    ["drain", 0, "done"],
    ["exit", 7, ""],
    ["throw", 1, ""],
    ["dispose", 0, "done"],
    ["abort", 0, "ERR_ABORTED"],
    ["worker-terminate", 0, "done"],
    ["worker-exit", 0, "3"],
    ["worker-throw", 0, "1"],
    ["three-environments", 0, "0 0"],
  ])("%s", { timeout: limit + 5000 }, (name, status, out) => {
    const result = runCase(name);
    expect(result, result.err).toMatchObject({ status, out });
  });
});
