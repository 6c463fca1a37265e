/** `danceflux build`: compiles the engine for this machine. */
import type { Command } from "commander";
import { type BuildOptions, buildNative, missingBuildTools } from "../native-build.js";
import type { CommandContext } from "./context.js";
import type { Output } from "./output.js";

const SUMMARY = "Compile the engine here, where the shipped binaries do not fit";
const MORE = `
Needs g++ 12 or clang 15 or newer, cmake, and ninja or make; the packages cmake-js and node-addon-api beside danceflux.
For --cuda also nvcc 12.8 or newer and the headers of cuBLAS, cuDNN 9 and NCCL: the toolkit's, or those of NVIDIA's wheels.

Examples:
  npm install cmake-js@8 node-addon-api@8 && npx danceflux build
  pip install --no-deps --target wheels nvidia-cublas nvidia-cudnn-cu13 nvidia-nccl-cu13
  npx danceflux build --cuda --wheels wheels/nvidia`;

export function addBuild(program: Command, context: CommandContext): void {
  program
    .command("build")
    .summary(SUMMARY)
    .description(SUMMARY)
    .option("--cuda", "the plugin for NVIDIA GPUs too")
    .option(
      "--wheels <folder>",
      "with --cuda: the folder nvidia of the site-packages that holds NVIDIA's wheels",
    )
    .option("--json", "tell the addon's path as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action(async (options: BuildOptions, output: Output) => {
        if (missingBuildTools(undefined, options).length === 0)
          output.progress.note("compiling; this takes some minutes");
        const addon = buildNative(undefined, options);
        output.result({ addon }, `built ${addon}`);
      }),
    );
}
