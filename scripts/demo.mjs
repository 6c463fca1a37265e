// npm run demo [-- OPTIONS]: installs and builds what is missing, then trains the shipped tiny model on the CPU into runs/demo.
// OPTIONS are those of `danceflux train`. An interrupted demo goes on; a finished one is put aside as runs/demo-1, -2, ...
import { spawn } from "node:child_process";
import { existsSync, readFileSync, renameSync } from "node:fs";
import { buildTypeScript, ensureInstalled, inRoot, mustRun, root } from "./common.mjs";

const config = "models/tiny-shapes/demo.json";

function putAsideFinished() {
  const folder = inRoot("runs", "demo");
  if (!existsSync(`${folder}/summary.json`)) return;
  const { iterations } = JSON.parse(readFileSync(`${folder}/summary.json`, "utf8"));
  if (iterations < JSON.parse(readFileSync(inRoot(config), "utf8")).iterations) return;
  let number = 1;
  while (existsSync(`${folder}-${number}`)) number += 1;
  renameSync(folder, `${folder}-${number}`);
  console.error(`the finished run of before is now runs/demo-${number}`);
}

ensureInstalled();
mustRun(process.execPath, [inRoot("scripts", "prepare-native.mjs")]);
buildTypeScript();
putAsideFinished();

const args = [inRoot("dist", "cli.js"), "train", config, ...process.argv.slice(2)];
const demo = spawn(process.execPath, args, { cwd: root, stdio: "inherit" });
// Ctrl-C reaches the training too, which writes its checkpoint first: wait for it.
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => {});
demo.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
demo.on("close", (status) => {
  process.exitCode = status ?? 1;
});
