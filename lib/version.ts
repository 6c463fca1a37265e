import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "./native-loader.js";

/** Version of this package. */
export function version(): string {
  const manifest = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string };
  return manifest.version;
}
