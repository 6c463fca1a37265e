/** `danceflux report RUN`: the page about a run. */
import { resolve } from "node:path";
import type { Command } from "commander";
import { writeReport } from "../report/index.js";
import { readRun } from "../report/run.js";
import { summarize } from "../report/summary.js";
import type { CommandContext } from "./context.js";
import type { Output } from "./output.js";
import { summaryLines } from "./train.js";

const SUMMARY = "Write the report of a run, finished or not";
const MORE = `
The page needs nothing else: open it in a browser, or send it to somebody.

Examples:
  danceflux report runs/demo
  danceflux report runs/demo --out demo.html`;

async function report(folder: string, out: string | undefined, output: Output): Promise<void> {
  const path = resolve(await (out === undefined ? writeReport(folder) : writeReport(folder, out)));
  const summary = summarize(await readRun(folder));
  output.result({ report: path, ...summary }, [...summaryLines(summary), `report: ${path}`].join("\n"));
}

export function addReport(program: Command, context: CommandContext): void {
  program
    .command("report")
    .summary(SUMMARY)
    .description(SUMMARY)
    .argument("<run>", "run folder")
    .option("--out <file>", "where to (default report.html in the run folder)")
    .option("--json", "tell where it is and the summary as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action((folder: string, { out }: { out?: string }, output: Output) =>
        report(folder, out, output),
      ),
    );
}
