#!/usr/bin/env node
// What prebuildify calls in node-gyp's place: `rebuild --target=... --arch=... --release`. Runs cmake-js for that architecture.
import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { inRoot, mustRun } from "./common.mjs";

const option = process.argv.find((argument) => argument.startsWith("--arch="));
const arch = option ? option.slice("--arch=".length) : process.arch;
// prebuildify takes whatever .node lies here, and one of another architecture may be left from before
rmSync(inRoot("build", "Release"), { recursive: true, force: true });

const cross =
  arch === process.arch ? [] : [`--CDCMAKE_TOOLCHAIN_FILE=${inRoot("cmake", `linux-${arch}.cmake`)}`];
mustRun(process.execPath, [
  inRoot("node_modules", "cmake-js", "bin", "cmake-js"),
  "build",
  ...["-a", arch, "-O", inRoot("build", `cmake-${arch}`), "-p", String(availableParallelism())],
  `--CDCMAKE_LIBRARY_OUTPUT_DIRECTORY=${inRoot("build", "Release")}`,
  "--CDDANCEFLUX_WERROR=ON",
  "--CDDANCEFLUX_TESTS=OFF",
  ...cross,
]);
