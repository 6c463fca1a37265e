// The laws of the house, read from the text of the sources. Who may include whom is a table; an exception is a row with its reason.
import { readFileSync } from "node:fs";
import { filesBelow, inRoot } from "./common.mjs";

const read = (path) => readFileSync(inRoot(path), "utf8");
const cpp = filesBelow("native", (path) => /\.(h|cpp|cu)$/.test(path));
const tests = filesBelow("test", (path) => /\.(h|cpp|ts|mjs)$/.test(path) && !path.includes("/fixtures/"));
const ts = filesBelow("lib", (path) => path.endsWith(".ts"));
const rest = [...filesBelow("bench"), ...filesBelow("scripts"), ...filesBelow("cmake")].filter((path) =>
  /\.(ts|mjs|h|cpp|cmake|py)$/.test(path),
);

const broken = [];
const breach = (path, line, law) => broken.push(`${path}${line ? `:${line}` : ""}: ${law}`);

/** Calls visit(match, line number) for every match of a pattern, line by line. */
function grep(path, pattern, visit) {
  for (const [index, line] of read(path).split("\n").entries()) {
    const match = pattern.exec(line);
    if (match) visit(match, index + 1);
  }
}

// ---- who may include whom ---------------------------------------------------------------------------------------------
// room: the rooms whose headers it may include besides its own
const rooms = {
  core: [],
  io: ["core"],
  backend: ["core"],
  autograd: ["backend", "core"],
  ops: ["autograd", "backend", "core"],
  nn: ["ops", "autograd", "io", "core"],
  models: ["nn", "ops", "autograd", "core"],
  train: ["models", "nn", "ops", "autograd", "io", "core"],
  align: ["autograd", "io", "backend", "core"],
  addon: ["align", "train", "models", "nn", "ops", "autograd", "io", "backend", "core"],
};
// file pattern, header pattern, reason
const exceptions = [
  [
    /^native\/backend\/registry\.cpp$/,
    /^backend\/cpu\/(cpu_backend|collective)\.h$/,
    "the cpu and its collectives are built in: the registry makes them",
  ],
  [
    /^native\/train\/gradient_sync\.h$/,
    /^backend\/communicator\.h$/,
    "gradients travel by the Communicator contract",
  ],
];
const excepted = (path, header) =>
  exceptions.some(([file, included]) => file.test(path) && included.test(header));

for (const path of cpp) {
  const room = path.split("/")[1];
  const house = /^native\/backend\/([^/]+)\//.exec(path)?.[1];
  grep(path, /^\s*#\s*include\s+"([^"]+)"/, ([, header], line) => {
    if (excepted(path, header)) return;
    const target = header.split("/")[0];
    if (!(target in rooms))
      breach(path, line, `includes "${header}": headers are named from native/ (core/tensor.h)`);
    else if (target !== room && !rooms[room]?.includes(target))
      breach(path, line, `${room} may not include ${header}`);
    const targetHouse = /^backend\/([^/]+)\//.exec(header)?.[1];
    if (targetHouse && targetHouse !== house)
      breach(path, line, `only native/backend/${targetHouse} includes ${header}`);
    if (
      room === "addon" &&
      target === "backend" &&
      !/^backend\/(backend|communicator|registry|plugin)\.h$/.test(header)
    )
      breach(
        path,
        line,
        "the addon opens and names devices and communicators (registry.h, backend.h, communicator.h, plugin.h) and no more",
      );
  });
  if (room !== "addon")
    grep(path, /#\s*include\s+[<"](napi|node_api|js_native_api|uv)\b/, (_, line) =>
      breach(path, line, "only addon/ includes napi"),
    );
}

// ---- the door ---------------------------------------------------------------------------------------------------------
for (const path of ts) {
  if (!/^lib\/native-(loader|build)\.ts$/.test(path))
    grep(path, /node-gyp-build|\.node["'`]/, (_, line) =>
      breach(path, line, "only native-loader.ts opens the binary"),
    );
  if (!/^lib\/native(-loader)?\.ts$/.test(path))
    grep(path, /\bloadAddon\b/, (_, line) => breach(path, line, "only native.ts asks for the binary"));
}

// ---- length -----------------------------------------------------------------------------------------------------------
const maxFile = 600;
const maxFunction = 100;
for (const path of [...cpp, ...ts, ...tests, ...rest]) {
  const lines = read(path).split("\n");
  if (lines.length > maxFile + 1)
    breach(path, 0, `expected at most ${maxFile} lines, got ${lines.length - 1}`);
  if (!/\.(cpp|cu|ts|mjs)$/.test(path)) continue;
  // Definitions at the outer level begin and end in the first column; describe() blocks of tests hold many.
  let start = -1;
  for (const [index, line] of lines.entries()) {
    if (
      start < 0 &&
      /^[\w[].*\{$/.test(line) &&
      !/^(namespace|struct|class|enum|union|extern|export (abstract )?(class|interface)|interface|describe|export default)\b/.test(
        line,
      )
    )
      start = index;
    else if (start >= 0 && line.startsWith("}")) {
      if (index - start + 1 > maxFunction)
        breach(
          path,
          start + 1,
          `expected a function of at most ${maxFunction} lines, got ${index - start + 1}`,
        );
      start = -1;
    }
  }
}

// ---- words ------------------------------------------------------------------------------------------------------------
const forbidden = [
  [/\b(FIXME|XXX|HACK)\b/, "finish it or file it"],
  [/["'\s(](\/home|\/root|\/work|\/Users)\//, "a path of somebody's machine"],
  [/registry\.(npmjs|npmmirror|yarnpkg)\.[a-z]+/, "a registry host"],
  [/-ffast-math|-funsafe-math/, "results must be the same bits everywhere"],
  [/#\s*include\s+<omp\.h>|#\s*pragma\s+omp\b/, "threads come from the engine's own pool"],
  [/\bdlclose\s*\(/, "plugins stay open until the process ends"],
  [/(?<!\.)\beval\s*\(|new Function\s*\(/, "nothing from outside is run as code"],
];
for (const path of [...cpp, ...ts, ...tests, ...rest].filter((each) => each !== "scripts/laws.mjs")) {
  for (const [pattern, reason] of forbidden)
    grep(path, pattern, ([word], line) => breach(path, line, `"${word.trim()}": ${reason}`));
}
grep("package-lock.json", /"resolved"/, (_, line) =>
  breach("package-lock.json", line, "names a registry host"),
);

for (const line of broken) console.error(line);
console.log(`${cpp.length + ts.length + tests.length + rest.length} files, ${broken.length} breaches`);
process.exit(broken.length ? 1 : 0);
