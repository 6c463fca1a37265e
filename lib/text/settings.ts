// What tokenizer_config.json and special_tokens_map.json say about a tokenizer: its class, its length, its special
// tokens. Both files are optional; vocabularies are read elsewhere.

import { join } from "node:path";
import type { AddedToken } from "./added_tokens.js";
import {
  asArray,
  asBoolean,
  asObject,
  asString,
  asTokenId,
  describe,
  type Json,
  type JsonObject,
  readObject,
  tokenizerError,
} from "./fields.js";

/** A literal token before its id is known. */
export type TokenSpec = Omit<AddedToken, "id">;

export type SpecialName = "bos" | "eos" | "pad" | "unk";
const SPECIAL_NAMES: readonly SpecialName[] = ["bos", "eos", "unk", "pad"];

export interface Settings {
  /** For messages. */
  folder: string;
  /** `tokenizer_class` without a trailing "Fast". */
  className: string | undefined;
  /** `model_max_length`, when it is a sensible number. */
  maxLength: number | undefined;
  /** Content of each special token that the files name. */
  special: Partial<Record<SpecialName, string>>;
  /** Literal tokens of `added_tokens_decoder`: their flags are final. */
  declared: TokenSpec[];
  /** Special tokens that are only named: they become literals unless something else declares them. */
  named: TokenSpec[];
  /** Number of `<extra_id_N>` sentinels that T5 puts behind a SentencePiece vocabulary. */
  extraIds: number;
}

/** Lengths above this are placeholders ("no limit") in published files. */
const LARGEST_LENGTH = 2 ** 20;

/** A token written as a string or as an object with flags. */
export function readTokenSpec(value: Json | undefined, where: string, special: boolean): TokenSpec {
  if (typeof value === "string")
    return { content: value, singleWord: false, lstrip: false, rstrip: false, normalized: !special };
  const object = asObject(value, where);
  const flag = (key: string, fallback: boolean): boolean =>
    asBoolean(object[key], `${where}.${key}`, fallback);
  const isSpecial = flag("special", special);
  return {
    content: asString(object.content, `${where}.content`),
    singleWord: flag("single_word", false),
    lstrip: flag("lstrip", false),
    rstrip: flag("rstrip", false),
    normalized: flag("normalized", !isSpecial),
  };
}

function readLength(config: JsonObject, where: string): number | undefined {
  const value = config.model_max_length;
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "number" || !(value >= 1))
    throw tokenizerError(
      `${where}.model_max_length`,
      `expected a length of at least 1, got ${describe(value)}`,
    );
  return value > LARGEST_LENGTH ? undefined : Math.floor(value);
}

function readDecoder(config: JsonObject, where: string): TokenSpec[] | undefined {
  if (config.added_tokens_decoder === undefined) return undefined;
  const table = Object.entries(asObject(config.added_tokens_decoder, `${where}.added_tokens_decoder`));
  return table
    .map(([key, value]) => {
      const place = `${where}.added_tokens_decoder[${describe(key)}]`;
      return { id: asTokenId(Number(key), place), spec: readTokenSpec(value, place, false) };
    })
    .sort((a, b) => a.id - b.id)
    .map(({ spec }) => spec);
}

function refuseLeftSides(config: JsonObject, where: string): void {
  for (const key of ["padding_side", "truncation_side"])
    if ((config[key] ?? "right") !== "right")
      throw tokenizerError(
        `${where}.${key}`,
        `expected "right", got ${describe(config[key])}: not supported`,
      );
}

function readExtraIds(config: JsonObject, where: string): number {
  const value = config.extra_ids ?? 100;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > 10_000)
    throw tokenizerError(`${where}.extra_ids`, `expected a count from 0 to 10000, got ${describe(value)}`);
  return value;
}

/** Reads the two small files of a tokenizer folder. */
export async function readSettings(folder: string): Promise<Settings> {
  const where = join(folder, "tokenizer_config.json");
  const config = (await readObject(where)) ?? {};
  const mapWhere = join(folder, "special_tokens_map.json");
  const map = (await readObject(mapWhere)) ?? {};
  refuseLeftSides(config, where);
  const tokens = readDecoder(config, where);
  const special: Settings["special"] = {};
  const named = new Map<string, TokenSpec>();
  for (const name of SPECIAL_NAMES) {
    const key = `${name}_token`;
    // Without a table of added tokens the map is the older and fuller source: it alone carries flags.
    const order = tokens ? [config, map] : [map, config];
    const owner = order.find((o) => o[key] !== undefined && o[key] !== null);
    if (!owner) continue;
    const spec = readTokenSpec(owner[key], `${owner === map ? mapWhere : where}.${key}`, true);
    special[name] = spec.content;
    // One literal may have several names; the flags of the last one count, as in transformers.
    named.set(spec.content, spec);
  }
  const extras = asArray(config.extra_special_tokens ?? config.additional_special_tokens ?? [], where).map(
    (value) => readTokenSpec(value, `${where}.additional_special_tokens`, true),
  );
  const className = config.tokenizer_class;
  return {
    folder,
    className:
      className == null ? undefined : asString(className, `${where}.tokenizer_class`).replace(/Fast$/, ""),
    maxLength: readLength(config, where),
    special,
    declared: tokens ?? [],
    named: [...named.values(), ...extras],
    extraIds: readExtraIds(config, where),
  };
}

export function firstFreeId(ids: Iterable<number>): number {
  let next = 0;
  for (const id of ids) if (id >= next) next = id + 1;
  return next;
}

/**
 * All literal tokens with their ids: the model's own, or the next free one.
 *
 * @param base tokens that already have ids (those of tokenizer.json); `declared` ones replace their flags
 * @param extra tokens that count only when nothing else declares them
 */
export function addedTokens(
  settings: Settings,
  vocab: ReadonlyMap<string, number>,
  base: readonly AddedToken[] = [],
  extra: readonly TokenSpec[] = [],
): AddedToken[] {
  const tokens = new Map(base.map((token) => [token.content, token]));
  let next = Math.max(firstFreeId(vocab.values()), firstFreeId(base.map((token) => token.id)));
  const add = (spec: TokenSpec): void => {
    const id = tokens.get(spec.content)?.id ?? vocab.get(spec.content) ?? next++;
    tokens.set(spec.content, { ...spec, id });
  };
  settings.declared.forEach(add);
  for (const spec of [...settings.named, ...extra]) if (!tokens.has(spec.content)) add(spec);
  tokens.delete("");
  return [...tokens.values()];
}
