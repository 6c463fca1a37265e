// check-glibc.mjs [FOLDER...]: the binaries below (default: prebuilds/, else build/Release) ask for no newer glibc than package.json
// promises ("danceflux": {"glibc": ...}), and for no library but those of glibc and each other.
import { existsSync, readFileSync } from "node:fs";
import { filesBelow, inRoot, outputOf } from "./common.mjs";

const floor = JSON.parse(readFileSync(inRoot("package.json"), "utf8")).danceflux.glibc;
const fallback = existsSync(inRoot("prebuilds")) ? "prebuilds" : "build/Release";
const folders = process.argv.length > 2 ? process.argv.slice(2) : [fallback];
const allowed = /^(lib(c|m|dl|pthread)\.so\.\d+|ld-linux-.*|libdanceflux_core\.so)$/;

const compare = (a, b) => {
  const [left, right] = [a, b].map((version) => version.split(".").map(Number));
  const at = left.findIndex((part, i) => part !== (right[i] ?? 0));
  return at < 0 ? left.length - right.length : left[at] - (right[at] ?? 0);
};

let failures = 0;
const fail = (text) => {
  failures += 1;
  console.error(`  ${text}`);
};

// The bridge to Gloo is built for the machine that it runs on and not shipped.
const binaries = folders.flatMap((folder) =>
  filesBelow(folder, (path) => /\.(node|so)$/.test(path) && !path.endsWith("/libdanceflux_gloo_bridge.so")),
);
if (binaries.length === 0) fail(`no binaries in ${folders.join(", ")}`);
for (const binary of binaries) {
  const symbols = outputOf("readelf", ["--dyn-syms", "-W", binary]) ?? "";
  const needed = [...(outputOf("readelf", ["-d", binary]) ?? "").matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(
    (match) => match[1],
  );
  const wanted = [...symbols.matchAll(/ UND (\S+?)@+GLIBC_([\d.]+)/g)].map(([, name, version]) => ({
    name,
    version,
  }));
  const highest =
    wanted
      .map(({ version }) => version)
      .sort(compare)
      .at(-1) ?? "none";
  console.log(`${binary}: glibc ${highest}, needs ${needed.join(" ")}`);
  for (const { name, version } of wanted) {
    if (compare(version, floor) > 0)
      fail(`${name} asks for glibc ${version}, promised is ${floor}: add a row to cmake/old_glibc.cpp`);
  }
  for (const soname of needed) if (!allowed.test(soname)) fail(`${soname} is a library that nobody promised`);
  if (/ UND \S+@+(GLIBCXX|CXXABI|GCC)_/.test(symbols)) fail("asks for a libstdc++ or libgcc of the system");
}
process.exit(failures ? 1 : 0);
