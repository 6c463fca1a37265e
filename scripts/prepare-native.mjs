// Runs on `npm install` in a clone (never for those who install the package): builds the addon unless a usable one is there.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { buildNative, inRoot, root } from "./common.mjs";

// In a child process: a binary that crashes while loading must not take the install with it.
const probe = `require("node-gyp-build")(${JSON.stringify(root)})`;
const usable = spawnSync(process.execPath, ["-e", probe], { cwd: root, stdio: "ignore" }).status === 0;

if (usable) console.error("prepare: a usable native addon is there, nothing to compile");
else if (existsSync(inRoot("node_modules", "cmake-js"))) buildNative();
else
  console.error(
    "prepare: no native addon, and no cmake-js to build one with (npm ci without --omit=dev installs it)",
  );
