// Runs a test program and reads the counts from its closing line, "N passed, N failed".
import { spawn } from "node:child_process";
import { root } from "./common.mjs";

/** Output goes through to stdout. A program that fails, or dies, without counting a failure has one. */
export function runCounted(program, args, options = {}) {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, stdio: ["ignore", "pipe", "inherit"], ...options });
    let tail = "";
    child.stdout.on("data", (chunk) => {
      process.stdout.write(chunk);
      tail = (tail + chunk).slice(-2000);
    });
    child.on("error", (error) => {
      console.error(`${program}: ${error.message}`);
      resolve({ passed: 0, failed: 1 });
    });
    child.on("close", (status) => {
      const found = [...tail.matchAll(/(\d+) passed, (\d+) failed/g)].at(-1);
      const counts = { passed: Number(found?.[1] ?? 0), failed: Number(found?.[2] ?? 0) };
      if (status !== 0 && counts.failed === 0) counts.failed = 1;
      resolve(counts);
    });
  });
}
