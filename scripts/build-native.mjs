// npm run build:native [-- --tests]: the engine and the addon into build/Release; with --tests also build/danceflux_tests.
import { buildNative, ensureInstalled } from "./common.mjs";

ensureInstalled();
buildNative(process.argv.includes("--tests") ? { DANCEFLUX_TESTS: "ON" } : {});
