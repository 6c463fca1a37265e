// npm run build:native [-- --tests] [--cuda [--wheels DIR]]: the engine and the addon into build/Release; with --tests also
// build/danceflux_tests; with --cuda the CUDA plugin beside them (native/backend/cuda/CMakeLists.txt tells what it wants).
import { parseArgs } from "node:util";
import { buildNative, ensureInstalled } from "./common.mjs";

const { values } = parseArgs({
  options: {
    tests: { type: "boolean", default: false },
    cuda: { type: "boolean", default: false },
    wheels: { type: "string" },
  },
});
ensureInstalled();
buildNative({
  ...(values.tests ? { DANCEFLUX_TESTS: "ON" } : {}),
  ...(values.cuda ? { DANCEFLUX_CUDA: "ON", DANCEFLUX_CUDA_WHEELS: values.wheels ?? "" } : {}),
});
