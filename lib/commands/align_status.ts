/** What the commands of `danceflux align` share. */
import { mkdir } from "node:fs/promises";
import { resolve } from "node:path";
import type { CommandContext } from "./context.js";
import type { Output } from "./output.js";

/** Whatever keeps a comparison from being made is status 2: 1 says that the sides differ. */
export function unusable<A extends unknown[]>(
  context: CommandContext,
  work: (...args: [...A, Output]) => Promise<void>,
): (...args: unknown[]) => Promise<void> {
  const action = context.action<A>(work);
  return async (...args) => {
    await action(...args);
    if (context.failed) context.status = 2;
  };
}

/** A folder for an acceptance run's results. */
export async function resultFolder(path: string): Promise<string> {
  const folder = resolve(path);
  await mkdir(folder, { recursive: true });
  return folder;
}
