// The C++ benches, built on first use into a folder of their own.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = `${root}build/bench`;

function mustRun(program, args) {
  const { status } = spawnSync(program, args, { cwd: root, stdio: ["ignore", 2, 2] });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} failed`);
}

/** Path of the program `name`. Needs cmake, ninja and a C++ compiler. */
export function buildNativeBench(name) {
  mustRun("cmake", ["-G", "Ninja", "-S", root, "-B", folder, "-DDANCEFLUX_TESTS=ON"]);
  mustRun("ninja", ["-C", folder, name]);
  return `${folder}/${name}`;
}
