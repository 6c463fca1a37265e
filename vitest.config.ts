import { defineConfig } from "vitest/config";

// Each file runs in its own process, one at a time: the engine's thread pool owns all cores, and a native crash
// must take down one file, not the run.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // what is packed and shipped can only be tried after `npm run prebuilds`
    exclude: process.env.DANCEFLUX_SHIPPED === "1" ? [] : ["test/packaging/shipped/**"],
    pool: "forks",
    maxWorkers: 1,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    passWithNoTests: true,
  },
});
