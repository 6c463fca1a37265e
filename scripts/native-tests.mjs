// node scripts/native-tests.mjs BUILD: the C++ tests of a build folder, on the CPU and on the double of CANN in both of its layouts.
// Ends with the line "N passed, N failed"; exit status 1 when one fails.
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { ASCEND_TESTS, ascendDouble } from "./common.mjs";
import { runCounted } from "./count.mjs";

const NUMBERS = ["ops: ", "gradient: every"];
const MODELS = ["clip", "autoencoder: ", "t5: "];
const options = (value) => ({ DANCEFLUX_TEST_OPTIONS: JSON.stringify(value) });
const without = (...operators) => ({ ASCEND_DOUBLE_MISSING: operators.join(",") });
/** What the double plays, and which tests say something of it. */
const DOUBLES = [
  { layout: "8.1", tests: ASCEND_TESTS },
  { layout: "9.0", tests: ASCEND_TESTS },
  {
    name: "without fused operators",
    layout: "9.0",
    env: without(
      ...["aclnnFlashAttentionScore", "aclnnFlashAttentionScoreGrad", "aclnnRotaryPositionEmbedding"],
      "aclnnGroupNormSilu",
    ),
    tests: [...NUMBERS, ...MODELS],
  },
  {
    name: "in parity",
    layout: "9.0",
    env: options({ ascend: { parity: true } }),
    tests: [...NUMBERS, ...MODELS, "flux: ", "train: "],
  },
  {
    name: "with determinism off", // where a row's bits may depend on its batch
    layout: "9.0",
    env: options({ determinism: "off" }),
    tests: ["ops: every device agrees", "gradient: every", ...MODELS],
  },
  { name: "on an A3 chip", layout: "8.1", env: { ASCEND_DOUBLE_SOC: "Ascend910_9391" }, tests: NUMBERS },
  { name: "on a 950 chip", layout: "9.0", env: { ASCEND_DOUBLE_SOC: "Ascend950PR_9579" }, tests: NUMBERS },
];

/** `add(name, {passed, failed})` is called for each program run. */
export async function runNativeTests(build, add) {
  const program = join(build, "danceflux_tests");
  add("c++", await runCounted(program, []));
  add("ascend double", await runCounted(join(build, "ascend_double_tests"), []));
  for (const { name, layout, env = {}, tests } of DOUBLES) {
    const variables = { ...ascendDouble(layout, build), DANCEFLUX_TEST_BACKEND: "ascend", ...env };
    const counts = await runCounted(program, tests, { env: { ...process.env, ...variables } });
    add(`c++, Ascend double as CANN ${layout}${name ? ` ${name}` : ""}`, counts);
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
