// npm run bench -- NAME [--json]: builds what is missing, then runs bench/run.mjs. Only its words go to stdout.
import { buildTypeScript, ensureInstalled, inRoot, mustRun } from "./common.mjs";

ensureInstalled();
mustRun(process.execPath, [inRoot("scripts", "prepare-native.mjs")], { stdio: ["ignore", 2, 2] });
buildTypeScript();
mustRun(process.execPath, [inRoot("bench", "run.mjs"), ...process.argv.slice(2)]);
