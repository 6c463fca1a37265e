// Reading tokenizer files that nobody has vouched for: every field is checked before it is used, and every
// complaint names the file, what was expected and what was there.

import { readFile, stat } from "node:fs/promises";
import { DanceError, type DanceErrorOptions } from "../errors.js";

export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject {
  [key: string]: Json;
}

/** Largest tokenizer file that is read: published ones stay below 40 MB. */
const MAX_FILE_BYTES = 256 * 1024 * 1024;

export function tokenizerError(where: string, what: string, options?: DanceErrorOptions): DanceError {
  return new DanceError("ERR_TOKENIZER", `${where}: ${what}`, options);
}

/** A short description of a value for an error message; never the whole value. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object") return "an object";
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** The bytes of a file, or undefined when there is none. */
export async function readBytes(path: string): Promise<Uint8Array | undefined> {
  let size: number;
  try {
    const info = await stat(path);
    if (!info.isFile()) throw tokenizerError(path, "expected a file, got something else");
    size = info.size;
  } catch (cause) {
    if (cause instanceof DanceError) throw cause;
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw tokenizerError(path, "cannot be read", { cause });
  }
  if (size > MAX_FILE_BYTES)
    throw tokenizerError(path, `expected at most ${MAX_FILE_BYTES} bytes, got ${size}`);
  try {
    return await readFile(path);
  } catch (cause) {
    throw tokenizerError(path, "cannot be read", { cause });
  }
}

/** Strict UTF-8, without a byte order mark. */
export function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw tokenizerError(where, "expected UTF-8 text, got other bytes", { cause });
  }
}

export async function readText(path: string): Promise<string | undefined> {
  const bytes = await readBytes(path);
  return bytes && decodeUtf8(bytes, path);
}

export function parseObject(text: string, where: string): JsonObject {
  let value: Json;
  try {
    value = JSON.parse(text) as Json;
  } catch (cause) {
    throw tokenizerError(where, `expected JSON, got a syntax error (${(cause as Error).message})`, { cause });
  }
  return asObject(value, where);
}

export async function readObject(path: string): Promise<JsonObject | undefined> {
  const text = await readText(path);
  return text === undefined ? undefined : parseObject(text, path);
}

export function asObject(value: Json | undefined, where: string): JsonObject {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw tokenizerError(where, `expected an object, got ${describe(value)}`);
  return value;
}

export function asArray(value: Json | undefined, where: string): Json[] {
  if (!Array.isArray(value)) throw tokenizerError(where, `expected a list, got ${describe(value)}`);
  return value;
}

export function asString(value: Json | undefined, where: string): string {
  if (typeof value !== "string") throw tokenizerError(where, `expected a string, got ${describe(value)}`);
  return value;
}

export function asBoolean(value: Json | undefined, where: string, fallback: boolean): boolean {
  if (value === undefined || value === null) return fallback;
  if (typeof value !== "boolean")
    throw tokenizerError(where, `expected true or false, got ${describe(value)}`);
  return value;
}

/** Token ids must fit an embedding table that can exist: below 2^24 rows. */
export const MAX_TOKEN_ID: number = 2 ** 24 - 1;

export function asTokenId(value: Json | undefined, where: string): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > MAX_TOKEN_ID)
    throw tokenizerError(where, `expected a token id from 0 to ${MAX_TOKEN_ID}, got ${describe(value)}`);
  return value;
}

export function asFinite(value: Json | undefined, where: string): number {
  if (typeof value !== "number" || !Number.isFinite(value))
    throw tokenizerError(where, `expected a finite number, got ${describe(value)}`);
  return value;
}

/** A field that this reader does not implement must be absent, null or `allowed`. */
export function refuseUnless(owner: JsonObject, key: string, allowed: Json, where: string): void {
  const value = owner[key];
  if (value === undefined || value === null || value === allowed) return;
  throw tokenizerError(
    `${where}.${key}`,
    `expected ${describe(allowed)}, got ${describe(value)}: not supported`,
  );
}
