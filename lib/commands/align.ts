/** `danceflux align ...`: does one side compute what the other does, and if not, where does it start? */
import { resolve } from "node:path";
import type { Command } from "commander";
import { compareDumps } from "../align/compare.js";
import { type Level, readDump, type Summary } from "../align/dump.js";
import { comparisonPage } from "../align/pages.js";
import { parseSteps, recordRun } from "../align/record.js";
import { replayDump } from "../align/replay.js";
import { parseSide } from "../align/side.js";
import { DanceError } from "../errors.js";
import { loadConfig } from "../load_config.js";
import { writeAtomically } from "../models/save.js";
import { duration, shortNumber } from "../report/html.js";
import { addAcceptance } from "./align_runs.js";
import { unusable } from "./align_status.js";
import type { CommandContext } from "./context.js";
import { wholeNumber } from "./context.js";
import type { Output } from "./output.js";

const SUMMARY = "Show that two sides compute the same, or where they begin not to";
const MORE = `
A side is DEVICE,NAME=VALUE,...: dtype, batch and textLength are about the model, all else are the device's options.
Exit status of compare, inference, reward and train: 0 aligned, 1 not aligned, 2 cannot be told.

Examples:
  danceflux align record models/tiny-shapes/demo.json --side cpu,dtype=bf16 --level op --steps 0 --out a.dump
  danceflux align record models/tiny-shapes/demo.json --level op --steps 0 --out b.dump
  danceflux align compare a.dump b.dump --html report.html`;

const LEVELS: readonly string[] = ["stage", "block", "op"];
const SUMMARIES: readonly string[] = ["statistics", "full", "checksum"];

export const oneOf =
  <T extends string>(name: string, allowed: readonly string[]): ((text: string) => T) =>
  (text) => {
    if (allowed.includes(text)) return text as T;
    throw new DanceError(
      "ERR_USAGE",
      `${name}: expected one of ${allowed.join(", ")}, got ${JSON.stringify(text)}`,
    );
  };

interface RecordFlags {
  out: string;
  level: Level;
  summary: Summary;
  steps: number[];
  ranks: number[];
  side?: string;
  set?: string[];
  pictures: number;
}

async function record(path: string, flags: RecordFlags, output: Output): Promise<void> {
  const config = await loadConfig(path, flags.set ?? []);
  const { out, level, summary, steps, ranks, pictures } = flags;
  const result = await recordRun(config, {
    out,
    level,
    summary,
    steps,
    ranks,
    pictures,
    ...(flags.side === undefined ? {} : { side: parseSide(flags.side) }),
    onProgress: (what) => output.progress.update(what),
  });
  const { folder, iterations, seconds, recording } = result;
  if (folder === null) return; // the ranks that record tell of it
  const share = shortNumber((100 * recording) / seconds, 2);
  output.result(
    result,
    `recorded ${folder}: ${iterations} iterations in ${duration(seconds)}, recording took ${duration(recording)} of them (${share} %)`,
  );
}

interface ReplayFlags {
  from: string;
  out: string;
  level?: Level;
  side?: string;
  set?: string[];
}

async function replay(path: string, flags: ReplayFlags, output: Output): Promise<void> {
  const config = await loadConfig(path, flags.set ?? []);
  const folder = await replayDump(config, await readDump(flags.from), {
    out: flags.out,
    ...(flags.level ? { level: flags.level } : {}),
    ...(flags.side === undefined ? {} : { side: parseSide(flags.side) }),
    onProgress: (what) => output.progress.update(what),
  });
  output.result({ folder }, `replayed into ${folder}: each stage had side A's inputs`);
}

interface CompareFlags {
  html?: string;
  patch: number;
}

/** Infinities, which JSON cannot tell, as texts. */
const plain = (value: number): number | string => (Number.isFinite(value) ? value : String(value));

async function compare(
  a: string,
  b: string,
  flags: CompareFlags,
  output: Output,
  context: CommandContext,
): Promise<void> {
  const comparison = await compareDumps(await readDump(a), await readDump(b), {
    patch: flags.patch,
    onProgress: (done, all) => output.progress.update(`comparing ${done} of ${all}`),
  });
  if (flags.html !== undefined) await writeAtomically(resolve(flags.html), await comparisonPage(comparison));
  const { aligned, sentence, first, findings, differences, warnings, onlyA, onlyB } = comparison;
  const counts: Record<string, number> = {};
  for (const { status } of findings) counts[status] = (counts[status] ?? 0) + 1;
  const begins = first && {
    stage: first.record.stage,
    name: first.record.name,
    op: first.record.op,
    role: first.record.role,
    error: plain(first.error),
    inherited: plain(first.inherited),
    why: first.why,
  };
  const report = flags.html === undefined ? {} : { report: resolve(flags.html) };
  const result = {
    aligned,
    sentence,
    first: begins,
    counts,
    differences,
    warnings,
    onlyA: onlyA.length,
    onlyB: onlyB.length,
  };
  const setup = differences.map(
    ({ name, a, b, kind }) =>
      `  ${kind === "setup" ? "!" : " "} ${name}: ${a.slice(0, 80)} | ${b.slice(0, 80)}`,
  );
  const looks = comparison.pictures.flatMap(({ file, warnings: seen }) =>
    seen.map((what) => `${file}: ${what}`),
  );
  const deeper =
    first && first.record.op !== "parameter" && comparison.a.header.level !== "op"
      ? [`record both sides with --level op to see the op`]
      : [];
  const lines = [
    sentence,
    ...(setup.length > 0 ? ["set up differently (! computes something else):", ...setup] : []),
    ...warnings,
    ...looks.slice(0, 8),
    ...deeper,
    ...(report.report === undefined ? [] : [`report: ${report.report}`]),
  ];
  output.result({ ...result, ...report }, lines.join("\n"));
  if (findings.length === 0) context.status = 2;
  else if (!aligned) context.status = 1;
}

export function addAlign(program: Command, context: CommandContext): void {
  const align = program.command("align").summary(SUMMARY).description(SUMMARY).addHelpText("after", MORE);
  const json = "tell the result as one JSON object on stdout";
  align
    .command("record")
    .description("Record what a training run computes")
    .argument("<config>", "configuration file, JSON")
    .requiredOption("--out <folder>", "where to; empty or new")
    .option("--level <level>", LEVELS.join(", "), oneOf<Level>("--level", LEVELS), "block")
    .option("--steps <list>", "iterations, counted from 0: 0,5,10-12", (text) => parseSteps(text), [0])
    .option(
      "--ranks <list>",
      "which ranks of a launched run record",
      (text) => parseSteps(text, "--ranks"),
      [0],
    )
    .option(
      "--summary <kind>",
      `${SUMMARIES.join(", ")}; full is needed to replay`,
      oneOf<Summary>("--summary", SUMMARIES),
      "statistics",
    )
    .option("--side <side>", "device and options in place of the configuration's")
    .option("--pictures <count>", "pictures kept per iteration", wholeNumber("--pictures", 0), 12)
    .option("--set <name=value>", "change an option, any number of times", context.collect)
    .option("--json", json)
    .addHelpText(
      "after",
      "\nExample:\n  danceflux align record train.json --level op --steps 0,5,10-12 --out a.dump",
    )
    .action(
      unusable(context, (path: string, flags: RecordFlags, output: Output) => record(path, flags, output)),
    );
  align
    .command("replay")
    .description("Compute every stage of a dump on another side, each from the dump's own inputs")
    .argument("<config>", "configuration file, JSON")
    .requiredOption("--from <dump>", "a dump with whole tensors (--summary full)")
    .requiredOption("--out <folder>", "where to; empty or new")
    .option("--level <level>", `${LEVELS.join(", ")} (default: as the dump)`, oneOf<Level>("--level", LEVELS))
    .option("--side <side>", "device and options in place of the configuration's")
    .option("--set <name=value>", "change an option, any number of times", context.collect)
    .option("--json", json)
    .addHelpText(
      "after",
      "\nExample:\n  danceflux align replay train.json --from a.dump --side cpu,threads=1 --out b.dump",
    )
    .action(
      unusable(context, (path: string, flags: ReplayFlags, output: Output) => replay(path, flags, output)),
    );
  align
    .command("compare")
    .description("Compare two dumps; the second counts as right")
    .argument("<a>", "dump of the side in question")
    .argument("<b>", "dump of the side that counts as right")
    .option("--html <file>", "write a page about it")
    .option("--patch <pixels>", "pixels of a token along a side", wholeNumber("--patch", 2), 16)
    .option("--json", json)
    .addHelpText("after", "\nExample:\n  danceflux align compare a.dump b.dump --html report.html")
    .action(
      unusable(context, (a: string, b: string, flags: CompareFlags, output: Output) =>
        compare(a, b, flags, output, context),
      ),
    );
  addAcceptance(align, context);
}
