// npm test [-- FILTER...]: installs and builds what is missing, then the C++ tests and the TypeScript tests.
// With filters only the TypeScript test files whose path contains one. Ends with the line "N passed, N failed".
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import {
  ASCEND_TESTS,
  ascendDouble,
  bin,
  buildNative,
  buildTypeScript,
  ensureInstalled,
  inRoot,
  run,
} from "./common.mjs";
import { runCounted } from "./count.mjs";

const filters = process.argv.slice(2);
const shipped = process.env.DANCEFLUX_SHIPPED === "1"; // the binaries under test are the ones in prebuilds/

ensureInstalled();
if (!shipped) buildNative({ DANCEFLUX_TESTS: "ON" });
buildTypeScript();

let passed = 0;
let failed = 0;
const add = (name, counts) => {
  console.log(`${name}: ${counts.passed} passed, ${counts.failed} failed`);
  passed += counts.passed;
  failed += counts.failed;
};

const program = inRoot("build", "danceflux_tests");
if (filters.length === 0 && !shipped) {
  add("c++", await runCounted(program, []));
  add("ascend double", await runCounted(inRoot("build", "ascend_double_tests"), []));
  for (const layout of ["8.1", "9.0"]) {
    const env = { ...process.env, ...ascendDouble(layout), DANCEFLUX_TEST_BACKEND: "ascend" };
    add(`c++, Ascend double as CANN ${layout}`, await runCounted(program, ASCEND_TESTS, { env }));
  }
}

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

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed > 0 || passed === 0 ? 1 : 0);
