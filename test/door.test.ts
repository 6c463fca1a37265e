// The door to the engine: handles, jobs and arguments. How processes and workers end is in packaging/exit-paths.test.ts.
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, describe, expect, it } from "vitest";
import { openDevice } from "../lib/device.js";
import { loadFluxFolder } from "../lib/models/flux.js";
import {
  type FluxInputs,
  type NativeFlux,
  type NativeJob,
  type NativeTensor,
  type NoiseKey,
  native,
  runJob,
} from "../lib/native.js";
import { floatInput, inputShape, readCase } from "./fixtures/cases.js";
import { writeModel } from "./fixtures/models.js";
import { testDevice, testFolder } from "./support/device.js";

const device = testDevice({ threads: 2 });
const folder = testFolder();
const binding = native();
const key: NoiseKey = { seed: 1n, iteration: 0, prompt: 0, sample: 0, timestep: 0, purpose: 0 };
const source = readCase("flux-guidance");
const run = source.runs[0]!;

const upload = (values: number[], shape: number[]) =>
  device.handle.upload(Float32Array.from(values), shape).promise;
const small = () => upload([1, 2, 3, 4], [2, 2]);
const flux = async (): Promise<NativeFlux> =>
  (await loadFluxFolder(device, writeModel(source, join(folder, "flux")), "f32")).model;

/** Inputs of the golden's first run, a batch of 1. */
async function inputsOf(): Promise<FluxInputs & Disposable> {
  const rowOf = (name: string) => {
    const shape = inputShape(run, name).slice(1);
    const size = shape.reduce((product, dim) => product * dim, 1);
    return upload([...floatInput(run, name).slice(0, size)], [1, ...shape]);
  };
  const [latents, text, pooled] = [
    await rowOf("hidden_states"),
    await rowOf("encoder_hidden_states"),
    await rowOf("pooled_projections"),
  ];
  const [gridRows, gridColumns] = run.grid as [number, number];
  return {
    latents: [{ tensor: latents, row: 0 }],
    prompts: [0],
    text: [text],
    pooled: [pooled],
    timesteps: [500],
    guidance: [3500],
    gridRows,
    gridColumns,
    [Symbol.dispose]: () => [latents, text, pooled].forEach((tensor) => void tensor.dispose()),
  };
}

const STEP = { kind: "dance-sde", sigmas: [0.6], nextSigmas: [0.5], eta: 0.3 } as const;

async function codeOf(action: () => unknown): Promise<string> {
  try {
    const answer = action();
    const job = answer as NativeJob<unknown> | undefined;
    const result = await job?.promise;
    (result as NativeTensor | undefined)?.dispose?.();
    return "none";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** Seconds of work for the device's thread: jobs that end between two ops when told to. */
const busy = (on = device, jobs = 30) =>
  Array.from({ length: jobs }, () => on.handle.noise([key], [2048, 1024]));

describe("handles", () => {
  it("are counted, and disposed once or often", async () => {
    const before = binding.liveHandles();
    const tensor = await small();
    const model = await flux();
    const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, emaDecay: 0 };
    const optimizer = device.handle.createOptimizer(model, options);
    const other = openDevice("cpu", { threads: 1 });
    expect(binding.liveHandles()).toEqual({
      tensors: before.tensors + 1,
      models: before.models + 1,
      optimizers: before.optimizers + 1,
      communicators: before.communicators,
      devices: before.devices + 1,
      collected: before.collected,
    });
    expect(tensor.disposed).toBe(false);
    for (const handle of [tensor, optimizer, model, other, other.handle]) {
      handle.dispose();
      handle.dispose();
    }
    expect(tensor.disposed).toBe(true);
    expect(binding.liveHandles()).toEqual(before);
  });

  it("end with the scope that declares them with `using`", async () => {
    const before = binding.liveHandles();
    {
      using other = openDevice("cpu", { threads: 1 });
      using bare = binding.openDevice("cpu", "{}");
      using tensor = await small();
      using model = await flux();
      const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, emaDecay: 0 };
      using optimizer = device.handle.createOptimizer(model, options);
      expect([other, bare, tensor, model, optimizer].every(Boolean)).toBe(true);
      const made = binding.liveHandles();
      const kinds = ["tensors", "models", "optimizers", "devices"] as const;
      expect(kinds.map((kind) => made[kind] - before[kind])).toEqual([1, 1, 1, 2]);
    }
    expect(binding.liveHandles()).toEqual(before);
  });

  it("say so when they are used after their end", async () => {
    const inputs = await inputsOf();
    const tensor = await small();
    const model = await flux();
    const optimizer = device.handle.createOptimizer(model, {
      beta1: 0,
      beta2: 0,
      eps: 1,
      weightDecay: 0,
      emaDecay: 0,
    });
    for (const handle of [tensor, optimizer, model]) handle.dispose();
    const uses: (() => unknown)[] = [
      () => tensor.download(),
      () => tensor.shape,
      () => tensor.dtype,
      () => tensor.bytes,
      () => device.handle.toRgb8(tensor),
      () => model.kind,
      () => model.parameters(),
      () => model.missing(),
      () => model.load([]),
      () => model.setTrainable([]),
      () => model.zeroGradients(),
      () => model.read("a", "value"),
      () => model.write("a", new Float32Array(1)),
      () => model.save("a", { tensors: [], dtype: "f32", metadata: {} }),
      () => model.addLora({ rank: 1, alpha: 1, modules: [], seed: 0n }),
      () => model.velocity(inputs),
      () => device.handle.createOptimizer(model, { beta1: 0, beta2: 0, eps: 1, weightDecay: 0, emaDecay: 0 }),
      () => optimizer.step(0, 0),
      () => optimizer.swapEma(),
      () => optimizer.save("a"),
      () => optimizer.load("a"),
    ];
    for (const use of uses) expect(await codeOf(use), String(use)).toBe("ERR_DISPOSED");
    inputs[Symbol.dispose]();
  });

  it("of a device that is gone do no more", async () => {
    const other = openDevice("cpu", { threads: 1 });
    const tensor = await other.handle.noise([key], [4]).promise;
    const { model } = await loadFluxFolder(other, writeModel(source, join(folder, "flux")), "f32");
    other.dispose();
    const uses: (() => unknown)[] = [
      () => other.handle.upload(new Float32Array(1), [1]),
      () => other.handle.memory(),
      () => other.name,
      () => other.handle.createFlux({} as never, "f32"),
      () => tensor.download(),
      () => model.zeroGradients(),
    ];
    for (const use of uses) expect(await codeOf(use), String(use)).toBe("ERR_DISPOSED");
    tensor.dispose();
    model.dispose();
  });

  it("may be dropped while a job still works with them", async () => {
    const inputs = await inputsOf();
    const model = await flux();
    const wanted = await (await model.velocity(inputs).promise).download().promise;
    const job = model.velocity(inputs);
    inputs[Symbol.dispose]();
    model.dispose();
    const velocity = await job.promise;
    expect(await velocity.download().promise).toEqual(wanted);
    velocity.dispose();
  });

  it("that nobody disposed are cleaned up by the garbage collector, counted", async () => {
    const before = binding.liveHandles();
    const used = device.memory().used;
    async function forget(): Promise<void> {
      for (let i = 0; i < 5; i++) await upload(Array(1000).fill(i), [10, 100]);
      await flux();
      openDevice("cpu", { threads: 1 });
    }
    await forget();
    const clean = () => {
      const now = binding.liveHandles();
      return now.tensors <= before.tensors && now.models <= before.models && now.devices <= before.devices;
    };
    for (let i = 0; i < 50 && !clean(); i++) {
      collect();
      await new Promise((done) => setTimeout(done, 10));
    }
    expect(clean()).toBe(true);
    expect(binding.liveHandles().collected).toBeGreaterThanOrEqual(before.collected + 7);
    expect(device.memory().used).toBeLessThanOrEqual(used);
  });

  it("tell the garbage collector what they weigh: large ones are collected without being asked", async () => {
    const before = binding.liveHandles();
    for (let i = 0; i < 40; i++) {
      await device.handle.noise([key], [1024, 2048]).promise;
      await new Promise((done) => setTimeout(done, 1)); // finalizers run between turns
    }
    const after = binding.liveHandles();
    expect(after.collected - before.collected).toBeGreaterThan(0);
    expect(after.tensors - before.tensors).toBeLessThan(40);
  });
});

describe("jobs", () => {
  it("of a device run in the order in which they came", async () => {
    const done: number[] = [];
    const jobs = [2048, 4, 1024, 1].map((size, i) =>
      device.handle.noise([key], [size, 64]).promise.then((tensor) => {
        done.push(i);
        tensor.dispose();
      }),
    );
    await Promise.all(jobs);
    expect(done).toEqual([0, 1, 2, 3]);
    const model = await flux();
    const [{ name, shape }] = model.parameters() as [{ name: string; shape: number[] }];
    const size = shape.reduce((product, dim) => product * dim, 1);
    model.write(name, new Float32Array(size).fill(1)).promise.catch(() => {});
    const first = model.read(name, "value").promise;
    model.write(name, new Float32Array(size).fill(2)).promise.catch(() => {});
    const second = model.read(name, "value").promise;
    expect([(await first)[0], (await second)[0]]).toEqual([1, 2]);
    model.dispose();
  });

  it("stop when they are told, and the device goes on", async () => {
    const jobs = busy();
    const results = Promise.allSettled(jobs.map((job) => job.promise));
    for (const job of jobs) {
      job.abort();
      job.abort();
    }
    const codes = (await results).map((result) =>
      result.status === "rejected" ? result.reason.code : "done",
    );
    expect(codes.filter((code) => code === "ERR_ABORTED").length).toBeGreaterThanOrEqual(29);
    const tensor = await small();
    expect([...(await tensor.download().promise)]).toEqual([1, 2, 3, 4]);
    tensor.dispose();
  });

  it("reject with the reason of their signal, whether it came before, during or after", async () => {
    const reason = new Error("enough");
    const early = busy(device, 3).map((job) => runJob(job, AbortSignal.abort(reason)));
    expect((await Promise.allSettled(early))[2]).toEqual({ status: "rejected", reason });
    const controller = new AbortController();
    const rest = Promise.allSettled(busy(device, 5).map((job) => runJob(job, controller.signal)));
    const last = runJob(device.handle.noise([key], [4]), controller.signal);
    controller.abort(reason);
    await expect(last).rejects.toBe(reason);
    for (const result of await rest) if (result.status === "fulfilled") result.value.dispose();
    const late = new AbortController();
    const tensor = await runJob(device.handle.noise([key], [4]), late.signal);
    late.abort(reason);
    tensor.dispose();
    const flat = await small();
    const failed = runJob(device.handle.toRgb8(flat), new AbortController().signal);
    await expect(failed).rejects.toMatchObject({ code: "ERR_SHAPE" });
    flat.dispose();
  });

  it("in the middle of a transformer stop between two ops", async () => {
    const model = await flux();
    const inputs = await inputsOf();
    const rows = 4096; // long enough to be in its middle
    const many = { latents: Array(rows).fill(inputs.latents[0]), prompts: Array(rows).fill(0) };
    const levels = { timesteps: Array(rows).fill(500), guidance: Array(rows).fill(3500) };
    const job = model.velocity({ ...inputs, ...many, ...levels });
    setTimeout(() => job.abort(), 20);
    await expect(job.promise).rejects.toMatchObject({ code: "ERR_ABORTED" });
    const velocity = await model.velocity(inputs).promise;
    expect((await velocity.download().promise).every(Number.isFinite)).toBe(true);
    for (const thing of [velocity, model]) thing.dispose();
    inputs[Symbol.dispose]();
  });

  it("that wait are rejected when their device ends", async () => {
    const other = openDevice("cpu", { threads: 1 });
    const results = Promise.allSettled(busy(other, 20).map((job) => job.promise));
    const started = performance.now();
    other.dispose();
    const codes = (await results).map((result) =>
      result.status === "rejected" ? result.reason.code : "done",
    );
    expect(performance.now() - started).toBeLessThan(10_000);
    expect(codes.slice(1)).toEqual(Array(19).fill("ERR_ABORTED"));
  });

  it("of two devices run beside each other", async () => {
    const other = openDevice("cpu", { threads: 1 });
    const slow = busy(device, 20);
    const all = Promise.allSettled(slow.map((job) => job.promise));
    const tensor = await other.handle.noise([key], [4]).promise;
    // Had it waited for the other device, all of those would be done.
    for (const job of slow) job.abort();
    const results = await all;
    expect(results.some((result) => result.status === "rejected")).toBe(true);
    for (const result of results) if (result.status === "fulfilled") result.value.dispose();
    tensor.dispose();
    other.dispose();
  });
});

describe("arguments", () => {
  const strange = (): unknown[] => [
    undefined,
    null,
    true,
    1.5,
    Number.NaN,
    -1,
    2 ** 60,
    "x",
    "",
    {},
    [],
    [undefined],
    [[]],
    [{}],
    [1, "2"],
    1n,
    -1n,
    2n ** 70n,
    Symbol("s"),
    () => 1,
    new Float32Array(3),
    new Int32Array(3),
    new Uint8Array(2),
    new ArrayBuffer(8),
    new Date(),
    device.handle,
  ];
  const FINE = /^(ERR_[A-Z_]+|none)$/;

  it.each(["keyedNormal", "inspectFile", "readTensor", "openDevice"] as const)(
    "%s takes none that is wrong",
    async (name) => {
      const method = binding[name] as unknown as (...list: unknown[]) => unknown;
      for (const a of strange()) {
        for (const b of [undefined, "x", 3, {}])
          expect(await codeOf(() => method.call(binding, a, b)), String(name)).toMatch(/^ERR_[A-Z_]+$/);
      }
    },
    120_000,
  );

  it("no method of a handle falls over one", async () => {
    const model = await flux();
    const tensor = await small();
    const optimizer = device.handle.createOptimizer(model, {
      beta1: 0.9,
      beta2: 0.9,
      eps: 1,
      weightDecay: 0,
      emaDecay: 0,
    });
    const generator = binding.createTorchGenerator(1n);
    const skipped = new Set(["constructor", "dispose", "setStrictShortcuts"]);
    for (const handle of [device.handle, model, tensor, optimizer, generator]) {
      for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(handle))) {
        const method = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(handle), name)?.value as unknown;
        if (skipped.has(name) || typeof method !== "function") continue;
        for (const a of strange()) {
          for (const b of [undefined, [2], "value", {}]) {
            expect(await codeOf(() => method.call(handle, a, b)), `${name} ${String(b)}`).toMatch(FINE);
          }
        }
      }
    }
    for (const seed of [undefined, 1, "1", -1n, 2n ** 64n, {}]) {
      expect(await codeOf(() => binding.createTorchGenerator(seed as bigint))).toBe("ERR_ARGUMENT");
    }
    for (const handle of [model, tensor, optimizer]) handle.dispose();
  }, 120_000);

  it("methods refuse to be called on something else", async () => {
    const tensor = await small();
    const { download } = tensor;
    for (const receiver of [{}, device.handle, Object.create(Object.getPrototypeOf(tensor)), undefined]) {
      expect(() => download.call(receiver as never)).toThrow();
    }
    const Tensor = tensor.constructor as new () => NativeTensor;
    expect(await codeOf(() => new Tensor().download())).toBe("ERR_DISPOSED");
    expect(await codeOf(() => device.handle.toRgb8(Object.create(Tensor.prototype)))).not.toBe("none");
    tensor.dispose();
  });

  it("are named in the message", async () => {
    const inputs = await inputsOf();
    const model = await flux();
    const refused = async (over: object, message: string, code = "ERR_ARGUMENT") => {
      const bad = () => model.sampleStep({ ...inputs, ...STEP, noise: [key], denoised: false, ...over });
      const wanted = { code, message: expect.stringContaining(message) };
      await expect((async () => bad().promise)()).rejects.toMatchObject(wanted);
    };
    await refused({ kind: "ddim" }, 'got "ddim"', "ERR_OPTION");
    await refused({ kind: 3 }, "kind: expected a string, got a number");
    await refused({ latents: {} }, "latents: expected an array");
    await refused({ latents: [{ tensor: {}, row: 0 }] }, "latents: expected a tensor handle");
    await refused({ latents: [] }, "prompts: expected 0");
    await refused({ latents: [{ ...inputs.latents[0], row: 1 }] }, "narrow", "ERR_SHAPE");
    await refused({ latents: [{ ...inputs.latents[0], row: -1 }] }, "narrow", "ERR_SHAPE");
    await refused({ prompts: [1] }, "expected a prompt below 1, got 1", "ERR_SHAPE");
    await refused({ timesteps: [] }, "timesteps", "ERR_SHAPE");
    await refused({ timesteps: ["1"] }, "timesteps: expected a number, got a string");
    await refused({ guidance: undefined }, "guidance: expected a value, got undefined");
    await refused({ gridRows: 1e6 }, "latents", "ERR_SHAPE");
    await refused({ gridRows: 2 ** 16, gridColumns: 2 ** 16 }, "latents", "ERR_SHAPE");
    await refused({ gridRows: 2 ** 32 + run.grid![0 as never] }, "gridRows: expected");
    await refused({ sigmas: [0.5, 0.5] }, "expected 2 next levels, got 1", "ERR_SHAPE");
    await refused({ sigmas: [Number.NaN] }, "expected 1 >= sigma", "ERR_OPTION");
    await refused({ noise: [] }, "noise: expected 1 keys, got 0", "ERR_SHAPE");
    await refused({ noise: undefined }, "noise: expected 1 keys, got 0", "ERR_SHAPE");
    await refused({ noise: [{ ...key, sample: 2 ** 32 }] }, "sample: expected 0 to 2^32 - 1");
    await refused({ noise: [{ ...key, seed: 5 }] }, "seed: expected a bigint, got a number");
    await refused({ denoised: 1 }, "denoised: expected a boolean, got a number");
    model.dispose();
    inputs[Symbol.dispose]();
  });

  it("that would take more memory than there is are refused", async () => {
    expect(await codeOf(() => device.handle.noise([key, key, key, key], [2 ** 31, 2 ** 31]))).toMatch(
      /^ERR_(SHAPE|MEMORY)$/,
    );
    expect(await codeOf(() => device.handle.noise([key], [2 ** 52]))).toBe("ERR_MEMORY");
    expect(await codeOf(() => device.handle.upload(new Float32Array(0), [2 ** 40, 2 ** 40]))).toBe(
      "ERR_SHAPE",
    );
    expect(await codeOf(() => device.handle.upload(new Float32Array(1), [1, 1, 1, 1, 1, 1, 1, 1, 1]))).toBe(
      "ERR_SHAPE",
    );
  });

  it("may dispose the handle while they are read", async () => {
    const model = await flux();
    const items = [
      {
        get parameter() {
          model.dispose();
          return "x_embedder.weight";
        },
        file: "nowhere",
        tensor: "t",
      },
    ];
    expect(await codeOf(() => model.load(items))).toMatch(/^ERR_(FILE|DISPOSED)$/);
    const other = openDevice("cpu", { threads: 1 });
    const config = {
      get inChannels() {
        other.dispose();
        return 16;
      },
    };
    expect(await codeOf(() => other.handle.createFlux(config as never, "f32"))).toMatch(/^ERR_/);
    const another = await flux();
    const options = {
      beta1: 0,
      get beta2() {
        another.dispose();
        return 0;
      },
      eps: 1,
      weightDecay: 0,
      emaDecay: 0,
    };
    device.handle.createOptimizer(another, options).dispose();
  });
});

describe("an optimizer", () => {
  it("takes its numbers as doubles: 1 - beta2 loses no digits on the way", async () => {
    using model = await flux();
    using inputs = await inputsOf();
    const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, emaDecay: 0 };
    const name = "proj_out.weight";
    await model.setTrainable([name]).promise;
    using optimizer = device.handle.createOptimizer(model, options);
    await optimizer.prepare().promise;
    const { shape } = inputs.latents[0]!.tensor;
    const size = shape.reduce((product, dim) => product * dim, 1);
    using dVelocity = await upload(Array(size).fill(1), shape);
    const back = await model.velocityGradient(inputs, dVelocity, 0).promise;
    for (const handle of Object.values(back)) handle.dispose();
    const gradient = await model.read(name, "gradient").promise;
    await optimizer.step(1e-3, 0).promise;
    const file = join(folder, "optimizer.safetensors");
    await optimizer.save(file).promise;
    const second = binding.readTensor(file, `${name}.v`).values;
    const total = (values: Float32Array) => values.reduce((sum, value) => sum + value, 0);
    const wanted = total(gradient.map((g) => g * g)) * 0.001;
    expect(wanted).toBeGreaterThan(0);
    expect(Math.abs(total(second) / wanted - 1)).toBeLessThan(1e-6);
  });
});

describe("memory", () => {
  it("is taken from the system once: a repeated step allocates nothing new", async () => {
    const model = await flux();
    const inputs = await inputsOf();
    await model.setTrainable(model.parameters().map(({ name }) => name)).promise;
    const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, emaDecay: 0.9 };
    const optimizer = device.handle.createOptimizer(model, options);
    await optimizer.prepare().promise;
    async function iteration(recomputeBlocks: number): Promise<void> {
      const sampled = await model.sampleStep({ ...inputs, ...STEP, noise: [key], denoised: true }).promise;
      using numbers = await model.policyStep({
        ...inputs,
        ...STEP,
        next: [{ tensor: sampled.latents, row: 0 }],
        oldLogProbs: [...(await sampled.logProbs!.download().promise)],
        advantages: [1],
        clipRange: 0.1,
        lossDivisor: 1,
        recomputeBlocks,
      }).promise;
      expect(numbers.shape).toEqual([3, 1]);
      expect((await numbers.download().promise)[0]).toBe(1);
      await optimizer.step(0, 1).promise;
      for (const tensor of Object.values(sampled)) tensor.dispose();
    }
    for (const recompute of [0, -1]) {
      await iteration(recompute);
      const { systemAllocations, held, used, allocations } = device.memory();
      for (let i = 0; i < 5; i++) await iteration(recompute);
      const after = device.memory();
      expect(after.systemAllocations).toBe(systemAllocations);
      expect([after.held, after.used]).toEqual([held, used]);
      expect(after.allocations).toBeGreaterThan(allocations);
    }
    for (const handle of [model, optimizer]) handle.dispose();
    inputs[Symbol.dispose]();
    await device.handle.trim().promise;
    expect(device.memory().held).toBeLessThanOrEqual(device.memory().used);
  });

  // Tensors that tests above let go of without disposing them go when they are collected.
  afterAll(async () => {
    for (let i = 0; i < 50 && device.memory().used > 0; i++) {
      collect();
      await new Promise((done) => setTimeout(done, 10));
    }
    expect(device.memory().used).toBe(0);
  });
});
