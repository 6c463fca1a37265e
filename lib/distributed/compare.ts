/** Do all ranks train the same? A configuration that differs on one host would not be noticed until the results are wrong. */
import { createHash } from "node:crypto";
import { DanceError } from "../errors.js";
import { version } from "../version.js";
import type { Group } from "./types.js";

const digest = (value: unknown): string =>
  createHash("sha256")
    .update(JSON.stringify(value) ?? "")
    .digest("hex")
    .slice(0, 16);

/** Lists longer than this are one field. */
const LONG = 64;
/** Differing fields that are told. */
const SHOWN = 5;
const PREVIEW = 60;
const SECRET = /secret|token|password|authorization|key$/i;

/** Dotted names of all leaves. */
function* leaves(value: unknown, name = ""): Generator<[string, unknown]> {
  const inner = value !== null && typeof value === "object" ? Object.entries(value) : [];
  if (inner.length === 0 || (Array.isArray(value) && inner.length > LONG)) {
    if (value !== undefined) yield [name, value];
    return;
  }
  for (const [key, each] of inner) yield* leaves(each, name === "" ? key : `${name}.${key}`);
}

function preview(name: string, value: unknown): string {
  if (SECRET.test(name)) return "(hidden)";
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > PREVIEW ? `${text.slice(0, PREVIEW - 1)}\u2026` : text;
}

interface Leaf {
  digest: string;
  preview: string;
}

export interface CompareOptions {
  /** Dotted names that may differ, and all below them. Default: the device's name. */
  ignore?: readonly string[];
}

function difference(name: string, all: readonly Record<string, Leaf>[]): string {
  const groups = new Map<string, { shown: string; ranks: number[] }>();
  for (const [rank, fields] of all.entries()) {
    const leaf = Object.hasOwn(fields, name) ? fields[name] : undefined;
    const key = leaf?.digest ?? "";
    const entry = groups.get(key) ?? { shown: leaf?.preview ?? "nothing", ranks: [] };
    entry.ranks.push(rank);
    groups.set(key, entry);
  }
  const parts = [...groups.values()].map(({ shown, ranks }) => {
    const more = ranks.length > 4 ? ", ..." : "";
    return `${shown} on rank${ranks.length > 1 ? "s" : ""} ${ranks.slice(0, 4).join(", ")}${more}`;
  });
  return `${name}: ${parts.join(", ")}`;
}

/**
 * Makes sure that all ranks have the same configuration and version. All ranks call it.
 *
 * @throws {DanceError} `ERR_OPTION` on every rank, naming the fields that differ and who has what; `ERR_COMMUNICATION` as `exchange` does.
 */
export async function compareConfigs(
  group: Group,
  config: object,
  options: CompareOptions = {},
): Promise<void> {
  const { ignore = ["device.name"] } = options;
  const ignored = (name: string) => ignore.some((each) => name === each || name.startsWith(`${each}.`));
  // The order in which options were written does not matter.
  const fields = [["danceflux version", version()], ...leaves(config)]
    .filter(([name]) => !ignored(name as string))
    .sort(([a], [b]) => ((a as string) < (b as string) ? -1 : 1)) as [string, unknown][];
  const digests = await group.exchange("configuration", digest(fields));
  if (new Set(digests).size === 1) return;
  const own = Object.fromEntries(
    fields.map(([name, value]) => [name, { digest: digest(value), preview: preview(name, value) }]),
  );
  const all = await group.exchange<Record<string, Leaf>>("configuration, field by field", own);
  const names = [...new Set(all.flatMap(Object.keys))].sort();
  const differing = names.filter((name) => new Set(all.map((each) => each[name]?.digest)).size > 1);
  const more = differing.length > SHOWN ? `; and ${differing.length - SHOWN} more` : "";
  const shown = differing.slice(0, SHOWN).map((name) => difference(name, all));
  throw new DanceError(
    "ERR_OPTION",
    `configuration: expected the same on all ranks, got ${shown.join("; ")}${more}`,
    {
      hint: "all ranks read the same file, with the same changes and variables",
    },
  );
}
