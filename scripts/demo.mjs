// npm run demo [-- OPTIONS]: installs and builds what is missing, then trains the shipped tiny model on the CPU into runs/demo.
// The demo itself is lib/demo/main.ts; options are handed on to it.
import { buildTypeScript, ensureInstalled, inRoot, mustRun } from "./common.mjs";

ensureInstalled();
mustRun(process.execPath, [inRoot("scripts", "prepare-native.mjs")]);
buildTypeScript();
mustRun(process.execPath, [inRoot("dist", "demo", "main.js"), ...process.argv.slice(2)]);
