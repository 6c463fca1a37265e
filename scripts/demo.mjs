// npm run demo [-- --nproc N] [--set NAME=VALUE ...]: installs and builds what is missing, then trains the shipped tiny model on the
// CPU into runs/demo, tells what it learned and where the pictures are. With --nproc on so many ranks that train together; all other options
// are handed on to `danceflux train`.
import { existsSync, readFileSync, renameSync } from "node:fs";
import { buildTypeScript, ensureInstalled, inRoot, mustRun } from "./common.mjs";

const run = inRoot("runs", "demo");
const config = inRoot("models", "tiny-shapes", "demo.json");

/** An earlier demo is kept beside the new one: runs/demo-1, runs/demo-2, ... */
function moveAside() {
  if (!existsSync(run)) return;
  let number = 1;
  while (existsSync(`${run}-${number}`)) number++;
  renameSync(run, `${run}-${number}`);
  console.error(`the last demo is now in runs/demo-${number}`);
}

const options = process.argv.slice(2);
const place = options.indexOf("--nproc");
const [, ranks] = place < 0 ? [] : options.splice(place, 2);
if (place >= 0 && !/^[1-9]\d*$/.test(ranks ?? "")) {
  console.error(`demo: --nproc: expected a number of ranks, got ${ranks ?? "nothing"}`);
  process.exit(2);
}
const launcher = Number(ranks) > 1 ? ["launch", "--nproc-per-node", ranks, "--"] : [];

// Ctrl-C reaches the training too, which writes its checkpoint first; this process waits for it.
process.on("SIGINT", () => {});

ensureInstalled();
mustRun(process.execPath, [inRoot("scripts", "prepare-native.mjs")]);
buildTypeScript();
moveAside();
console.error("training models/tiny-shapes with DanceGRPO; this takes a few minutes");
mustRun(process.execPath, [inRoot("dist", "cli.js"), ...launcher, "train", config, ...options]);

const { before, after } = JSON.parse(readFileSync(inRoot("runs", "demo", "summary.json"), "utf8"));
if (before && after) {
  const told = (name, key) => `${name} ${before[key].toFixed(3)} -> ${after[key].toFixed(3)}`;
  console.log(`\non held-out prompts: ${told("reward", "reward")}, ${told("attribute check", "attributes")}`);
}
console.log("open runs/demo/report.html to see the pictures");
