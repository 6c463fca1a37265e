// Stands in for the Python of the model bench, so that the bench runs without PyTorch: the shipped tiny model in place of made weights, and our
// own side in place of the other. DANCEFLUX_FAKE_FAULT names outputs whose reference is spoiled.
import { spawn } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { formula, readNumbers, startSide } from "../../bench/peer.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const ourSide = join(root, "bench", "model-side.mjs");
const [script, folder, ...rest] = process.argv.slice(2);

function writeAdapters(path, { modules, rank }, width) {
  const header = {};
  const parts = [];
  let offset = 0;
  for (const [i, name] of modules
    .flatMap((module) => ["A", "B"].map((which) => `${module}.lora_${which}`))
    .entries()) {
    const values = formula(rank * width, i, 0.1);
    const shape = name.endsWith("A") ? [rank, width] : [width, rank];
    header[`transformer.${name}.weight`] = {
      dtype: "F32",
      shape,
      data_offsets: [offset, offset + values.byteLength],
    };
    offset += values.byteLength;
    parts.push(new Uint8Array(values.buffer));
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, ...parts]));
}

async function outputs(plan, tag) {
  const { parts, batches, iteration } = plan;
  const side = await startSide(process.execPath, [ourSide, folder, "outputs", "f32"]);
  for (const batch of batches)
    await side.ask({ do: "forward", pixels: 64, batch, write: `${tag}-forward-64-${batch}` });
  if (parts.includes("iteration"))
    await side.ask({ do: "pictures", batch: iteration.batch, write: `${tag}-pictures` });
  for (const kind of ["full", "lora"].filter((part) => parts.includes(part)))
    await side.ask({ do: "learn", kind, pixels: 64, recompute: 0, write: `${tag}-${kind}` });
  await side.end();
}

async function make() {
  const plan = JSON.parse(readFileSync(join(folder, "plan.json"), "utf8"));
  mkdirSync(join(folder, "model"));
  for (const name of ["transformer", "vae", "reward"])
    symlinkSync(join(root, "models", "tiny-shapes", name), join(folder, "model", name));
  writeAdapters(join(folder, "model", "lora.safetensors"), plan.lora, 128);
  await outputs(plan, "torch-f32");
  for (const name of readdirSync(folder).filter((each) => each.startsWith("torch-f32-")))
    copyFileSync(join(folder, name), join(folder, name.replace("torch-f32", "reference")));
  for (const spoiled of (process.env.DANCEFLUX_FAKE_FAULT ?? "").split(",").filter(Boolean))
    writeFileSync(
      join(folder, `reference-${spoiled}.f32`),
      readNumbers(folder, `reference-${spoiled}`).map((value) => value * 1.01),
    );
}

if (basename(script) === "model_make.py") await make();
else
  spawn(process.execPath, [ourSide, folder, ...rest], { stdio: "inherit" }).on("exit", (code) =>
    process.exit(code ?? 1),
  );
