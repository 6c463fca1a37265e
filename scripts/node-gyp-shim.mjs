#!/usr/bin/env node
// What prebuildify calls in node-gyp's place: `rebuild --target=... --arch=... --release`. Runs cmake-js for that architecture.
import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { buildNative, inRoot, mustRun } from "./common.mjs";

const option = process.argv.find((argument) => argument.startsWith("--arch="));
const arch = option ? option.slice("--arch=".length) : process.arch;
const release = inRoot("build", "Release");

// prebuildify takes whatever lies there
rmSync(release, { recursive: true, force: true });
if (arch === process.arch) buildNative({ DANCEFLUX_PREBUILD: "ON" });
else {
  mustRun(process.execPath, [
    inRoot("node_modules", "cmake-js", "bin", "cmake-js"),
    "build",
    ...["-a", arch, "-O", inRoot("build", `cmake-${arch}`), "-p", String(availableParallelism())],
    `--CDCMAKE_TOOLCHAIN_FILE=${inRoot("cmake", `linux-${arch}.cmake`)}`,
    `--CDCMAKE_LIBRARY_OUTPUT_DIRECTORY=${release}`,
    ...(process.env.CI ? ["--CDDANCEFLUX_WERROR=ON"] : []),
  ]);
}
