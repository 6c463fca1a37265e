import { access } from "node:fs/promises";
import { join } from "node:path";
import { ClipTokenizer } from "./clip.js";
import { describe, readObject, tokenizerError } from "./fields.js";
import { readSettings } from "./settings.js";
import { T5Tokenizer } from "./t5.js";
import type { TokenizerOptions } from "./tokenizer.js";

type Kind = "clip" | "t5";

const CLASSES: Readonly<Record<string, Kind>> = { CLIPTokenizer: "clip", T5Tokenizer: "t5" };
const MODEL_FILES: readonly (readonly [file: string, kind: Kind])[] = [
  ["vocab.json", "clip"],
  ["spiece.model", "t5"],
];

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

/** Which tokenizer a folder holds: by its class name, else by its model, else by its files. */
async function kindOf(folder: string): Promise<Kind> {
  const { className } = await readSettings(folder);
  if (className !== undefined && Object.hasOwn(CLASSES, className)) return CLASSES[className]!;
  const json = await readObject(join(folder, "tokenizer.json"));
  const model = json?.model;
  if (model !== null && typeof model === "object" && !Array.isArray(model))
    return Array.isArray(model.vocab) ? "t5" : "clip";
  for (const [file, kind] of MODEL_FILES) if (await exists(join(folder, file))) return kind;
  const seen = className === undefined ? "" : ` (tokenizer_class is ${describe(className)})`;
  throw tokenizerError(folder, `expected a CLIP or T5 tokenizer, found no file of one${seen}`);
}

/** Loads whichever tokenizer lies in `folder`. */
export async function loadTokenizer(
  folder: string,
  options: TokenizerOptions = {},
): Promise<ClipTokenizer | T5Tokenizer> {
  return (await kindOf(folder)) === "clip"
    ? ClipTokenizer.load(folder, options)
    : T5Tokenizer.load(folder, options);
}
