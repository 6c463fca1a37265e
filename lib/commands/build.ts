/** `danceflux build`: compiles the engine for this machine. */
import type { Command } from "commander";
import { buildNative, missingBuildTools } from "../native-build.js";
import type { CommandContext } from "./context.js";
import type { Output } from "./output.js";

const SUMMARY = "Compile the engine here, where the shipped binaries do not fit";
const MORE = `
Needs g++ 12 or clang 15 or newer, cmake, and ninja or make; the packages cmake-js and node-addon-api beside danceflux.

Examples:
  npm install cmake-js@8 node-addon-api@8 && npx danceflux build`;

export function addBuild(program: Command, context: CommandContext): void {
  program
    .command("build")
    .summary(SUMMARY)
    .description(SUMMARY)
    .option("--json", "tell the addon's path as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action(async (_options: object, output: Output) => {
        if (missingBuildTools().length === 0) output.progress.note("compiling; this takes some minutes");
        const addon = buildNative();
        output.result({ addon }, `built ${addon}`);
      }),
    );
}
