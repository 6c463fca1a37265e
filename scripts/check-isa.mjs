// check-isa.mjs [BUILD]: objects that are compiled once per instruction set define no weak symbol.
//
// An inline function that is not inlined there (a std::vector growing, say) becomes a weak symbol full of AVX-512, the linker keeps one
// copy for the whole library, and if it is that one, a machine without AVX-512 dies in code that never asked for it.
import { filesBelow, outputOf } from "./common.mjs";

const build = process.argv[2] ?? "build";
const objects = filesBelow(`${build}/CMakeFiles`, (path) =>
  /danceflux_isa_[a-z0-9]+\.dir\/.*\.o$/.test(path),
);
let failures = 0;
for (const object of objects) {
  for (const line of (outputOf("nm", ["-C", "--defined-only", object]) ?? "").split("\n")) {
    const [, , name] = /^[0-9a-f]* ([VWu]) (.*)$/.exec(line) ?? [];
    // what lives in the instruction set's own namespace has a twin nowhere else
    if (name === undefined || /(^|[ :*&<(])danceflux::(cpu::)?isa_[a-z0-9]+::/.test(name)) continue;
    failures += 1;
    console.error(`${object}: ${name} may replace the portable copy of the same function`);
  }
}
console.log(`${objects.length} objects, ${failures} weak symbols`);
process.exit(failures ? 1 : 0);
