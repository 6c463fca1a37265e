// npm run build:ts: lib/ to dist/. An install without development packages has nothing to build with, and nothing to build for.
import { existsSync } from "node:fs";
import { bin, buildTypeScript } from "./common.mjs";

if (existsSync(bin("tsc"))) buildTypeScript();
else console.error("build:ts: typescript is not installed, dist/ is left as it is");
