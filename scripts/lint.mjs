// npm run lint: biome, clang-format and the laws of the house.  npm run format (--write) mends what the two formatters can.

import { existsSync } from "node:fs";
import { bin, ensureInstalled, filesBelow, inRoot, outputOf, run } from "./common.mjs";

const write = process.argv.includes("--write");
ensureInstalled();

const sources = ["native", "test/native", "cmake"].flatMap((folder) =>
  filesBelow(folder, (path) => /\.(h|cpp|cu)$/.test(path)),
);
let failed = 0;
const check = (name, status) => {
  console.log(`${name}: ${status === 0 ? "ok" : "failed"}`);
  failed += status === 0 ? 0 : 1;
};

check("biome", run(bin("biome"), ["check", ...(write ? ["--write"] : ["--error-on-warnings"]), "."]));
if (outputOf("clang-format", ["--version"]))
  check(
    "clang-format",
    run("clang-format", write ? ["-i", ...sources] : ["--dry-run", "-Werror", ...sources]),
  );
else if (process.env.CI) check("clang-format (not installed)", 1);
check("laws", run(process.execPath, ["scripts/laws.mjs"]));
if (existsSync(inRoot("build", "CMakeFiles")))
  check("isa objects", run(process.execPath, ["scripts/check-isa.mjs", "build"]));

console.log(`${write ? "" : `${4 - failed} passed, `}${failed} failed`);
process.exit(failed ? 1 : 0);
