// npm test [-- FILTER...]: installs and builds what is missing, then the C++ tests and the TypeScript tests.
// With filters only the TypeScript test files whose path contains one. Ends with the line "N passed, N failed".
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { bin, buildNative, buildTypeScript, ensureInstalled, inRoot, run } from "./common.mjs";
import { counted, runNativeTests } from "./native-tests.mjs";

const filters = process.argv.slice(2);
const shipped = process.env.DANCEFLUX_SHIPPED === "1"; // the binaries under test are the ones in prebuilds/

ensureInstalled();
if (!shipped) buildNative({ DANCEFLUX_TESTS: "ON" });
buildTypeScript();

const { add, finish } = counted();
if (filters.length === 0 && !shipped) await runNativeTests(inRoot("build"), add);

const results = inRoot("build", "vitest.json");
mkdirSync(inRoot("build"), { recursive: true });
rmSync(results, { force: true });
const status = run(bin("vitest"), [
  "run",
  ...filters,
  "--reporter=default",
  "--reporter=json",
  `--outputFile.json=${results}`,
]);
const report = existsSync(results) ? JSON.parse(readFileSync(results, "utf8")) : {};
const counts = { passed: report.numPassedTests ?? 0, failed: report.numFailedTests ?? 0 };
// A file that does not load, or a process that dies after its tests passed, fails no test and yet is a failure.
if (status !== 0 && counts.failed === 0) counts.failed = 1;
add("typescript", counts);

finish();
