// npm run prebuilds [-- x64|arm64]: the binaries that the package ships, in prebuilds/linux-x64 and prebuilds/linux-arm64.
//
// arm64 is cross-built with Debian's g++-aarch64-linux-gnu and tried under qemu-user with an arm64 Node.
import { rmSync, statSync } from "node:fs";
import { bin, ensureInstalled, filesBelow, inRoot, mustRun, outputOf } from "./common.mjs";
import { fetchNode } from "./fetch-node.mjs";

const crossTools = {
  arm64: {
    compiler: "aarch64-linux-gnu-g++",
    strip: "aarch64-linux-gnu-strip",
    emulator: ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
    install: "apt-get install g++-aarch64-linux-gnu qemu-user",
  },
};

const asked = process.argv.slice(2);
const archs = asked.length > 0 ? asked : ["x64", "arm64"];
ensureInstalled();

for (const arch of archs) {
  const cross = arch === process.arch ? undefined : crossTools[arch];
  if (arch !== process.arch && !cross) {
    console.error(`prebuilds: expected x64 or arm64, got ${arch}`);
    process.exit(2);
  }
  if (cross && outputOf(cross.compiler, ["--version"]) === undefined) {
    console.error(`prebuilds: no ${cross.compiler}; ${cross.install}`);
    process.exit(1);
  }
  rmSync(inRoot("prebuilds", `linux-${arch}`), { recursive: true, force: true });
  const env = { ...process.env, ...(cross ? { PREBUILD_STRIP_BIN: cross.strip } : {}) };
  mustRun(
    bin("prebuildify"),
    [
      ...[
        "--napi",
        "--strip",
        "--name",
        "danceflux.napi",
        "--tag-libc",
        "--platform",
        "linux",
        "--arch",
        arch,
      ],
      // any version will do, the binary is of Node-API; without one prebuildify looks for the newest
      ...["-t", process.versions.node, "--node-gyp", inRoot("scripts", "node-gyp-shim.mjs")],
    ],
    { env },
  );

  // What is left there may be of another architecture, and newer than what the own build would make.
  rmSync(inRoot("build", "Release"), { recursive: true, force: true });

  const smoke = [
    inRoot("test", "packaging", "smoke.mjs"),
    inRoot("prebuilds", `linux-${arch}`, "danceflux.napi.glibc.node"),
  ];
  if (!cross) mustRun(process.execPath, smoke);
  else mustRun(cross.emulator[0], [...cross.emulator.slice(1), fetchNode(`linux-${arch}`, 20), ...smoke]);
}

for (const path of filesBelow("prebuilds"))
  console.log(`${path}: ${(statSync(inRoot(path)).size / 2 ** 20).toFixed(2)} MiB`);
mustRun(process.execPath, [inRoot("scripts", "check-glibc.mjs"), "prebuilds"]);
