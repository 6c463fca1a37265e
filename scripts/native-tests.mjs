// node scripts/native-tests.mjs BUILD: the C++ tests of a build folder, on the CPU and on the double of CANN in both of its layouts.
// Ends with the line "N passed, N failed"; exit status 1 when one fails.
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { ASCEND_TESTS, ascendDouble } from "./common.mjs";
import { runCounted } from "./count.mjs";

/** `add(name, {passed, failed})` is called for each program run. */
export async function runNativeTests(build, add) {
  const program = join(build, "danceflux_tests");
  add("c++", await runCounted(program, []));
  add("ascend double", await runCounted(join(build, "ascend_double_tests"), []));
  for (const layout of ["8.1", "9.0"]) {
    const env = { ...process.env, ...ascendDouble(layout, build), DANCEFLUX_TEST_BACKEND: "ascend" };
    add(`c++, Ascend double as CANN ${layout}`, await runCounted(program, ASCEND_TESTS, { env }));
  }
}

/** Counts that are told as they come: `add` for runNativeTests and others, `finish` for the closing line and the exit. */
export function counted() {
  const all = { passed: 0, failed: 0 };
  return {
    add: (name, { passed, failed }) => {
      console.log(`${name}: ${passed} passed, ${failed} failed`);
      all.passed += passed;
      all.failed += failed;
    },
    finish: () => {
      console.log(`${all.passed} passed, ${all.failed} failed`);
      process.exit(all.failed > 0 || all.passed === 0 ? 1 : 0);
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { add, finish } = counted();
  await runNativeTests(resolve(process.argv[2]), add);
  finish();
}
