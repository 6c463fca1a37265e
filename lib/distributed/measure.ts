/** How fast the collectives of a group are, and whether they are right: exact integers first, then time. */
import { DanceError } from "../errors.js";
import { type NativeCommunicator, type NativeDevice, type NativeTensor, runJob } from "../native.js";
import type { Group } from "./types.js";

export const COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "broadcast"] as const;
export type CollectiveName = (typeof COLLECTIVES)[number];

/** What one size of one collective took. */
export interface CollectiveTiming {
  collective: CollectiveName;
  /** Of f32 numbers; of reduce_scatter what goes in, of all_gather what comes out. */
  bytes: number;
  /** Of one call, the slowest rank's: mean of several calls, one after the other. */
  milliseconds: number;
  /** Bytes by time, GB/s. */
  algorithmBandwidth: number;
  /** What it means for each rank's link, GB/s: comparable over numbers of ranks. */
  busBandwidth: number;
  /** Elements that were not exactly what they had to be, of all ranks. */
  wrong: number;
}

export interface MeasureOptions {
  collectives: readonly CollectiveName[];
  /** Each is rounded up to a multiple of 4 bytes times ranks. */
  sizes: readonly number[];
}

/** Share of the bytes that a rank must at least send, as nccl-tests counts it (doc/PERFORMANCE.md there). */
const BUS_FACTOR: Readonly<Record<CollectiveName, (ranks: number) => number>> = {
  all_reduce: (n) => (2 * (n - 1)) / n,
  reduce_scatter: (n) => (n - 1) / n,
  all_gather: (n) => (n - 1) / n,
  broadcast: () => 1,
};

/** About 0.2 s at 1 GB/s, and a few hundred calls of the smallest. */
const callsOf = (bytes: number) => Math.max(4, Math.min(300, Math.floor(2e8 / (bytes + 1))));

/** Small whole numbers: sums of up to 2^17 of them are exact in f32. */
const element = (rank: number, i: number) => ((i * 7 + rank * 13) % 127) - 63;

/** A plain loop: Float32Array.from would take longer than all that is measured. */
function filled(count: number, value: (i: number) => number): Float32Array {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = value(i);
  return values;
}

interface Case {
  input(rank: number): Float32Array;
  /** Elements that the result has, when it is another tensor. */
  output?: number;
  wanted(rank: number): Float32Array;
  call(communicator: NativeCommunicator, input: NativeTensor, output: NativeTensor): Promise<void>;
}

function caseOf(name: CollectiveName, count: number, ranks: number): Case {
  const part = count / ranks;
  const sum = (i: number) => {
    let total = 0;
    for (let rank = 0; rank < ranks; rank++) total += element(rank, i);
    return total;
  };
  const own = (rank: number) => filled(count, (i) => element(rank, i));
  const options = { op: "sum", ordered: false } as const;
  switch (name) {
    case "all_reduce":
      return {
        input: own,
        wanted: () => filled(count, sum),
        call: (communicator, input) => runJob(communicator.allReduce(input, options)),
      };
    case "reduce_scatter":
      return {
        input: own,
        output: part,
        wanted: (rank) => filled(part, (i) => sum(rank * part + i)),
        call: (communicator, input, output) => runJob(communicator.reduceScatter(output, input, options)),
      };
    case "all_gather":
      return {
        input: (rank) => filled(part, (i) => element(rank, i)),
        output: count,
        wanted: () => filled(count, (i) => element(Math.floor(i / part), i % part)),
        call: (communicator, input, output) => runJob(communicator.allGather(output, input)),
      };
    case "broadcast":
      return {
        input: own,
        wanted: () => own(ranks - 1),
        call: (communicator, input) => runJob(communicator.broadcast(input, ranks - 1)),
      };
  }
}

async function measureOne(
  device: NativeDevice,
  group: Group,
  communicator: NativeCommunicator,
  collective: CollectiveName,
  bytes: number,
): Promise<CollectiveTiming> {
  const { rank, size } = group;
  const count = bytes / 4;
  const { input, output, wanted, call } = caseOf(collective, count, size);
  const values = input(rank);
  const upload = (data: Float32Array) => runJob(device.upload(data, [data.length]));
  using given = await upload(values);
  using result = output === undefined ? undefined : await upload(new Float32Array(output));
  const holds = result ?? given;
  await call(communicator, given, holds);
  const right = wanted(rank);
  const got = await runJob(holds.download());
  let wrong = 0;
  for (let i = 0; i < right.length; i++) if (got[i] !== right[i]) wrong++;
  // Zeros, which stay what they are however often they are added up.
  using zeros = await upload(new Float32Array(values.length));
  const target = result ?? zeros;
  await call(communicator, zeros, target);
  await runJob(communicator.barrier());
  const calls = callsOf(bytes);
  const started = performance.now();
  await Promise.all(Array.from({ length: calls }, () => call(communicator, zeros, target)));
  const own = { wrong, milliseconds: (performance.now() - started) / calls };
  const all = await group.exchange(`${collective} ${bytes}`, own);
  const milliseconds = Math.max(...all.map((each) => each.milliseconds));
  const algorithmBandwidth = bytes / 1e6 / milliseconds;
  return {
    collective,
    bytes,
    milliseconds,
    algorithmBandwidth,
    busBandwidth: algorithmBandwidth * BUS_FACTOR[collective](size),
    wrong: all.reduce((total, each) => total + each.wrong, 0),
  };
}

/**
 * Measures collectives of f32 numbers on a group's device. All ranks call it with the same options.
 *
 * @throws {DanceError} `ERR_OPTION` for a group of one; `ERR_COMMUNICATION`.
 */
export async function* measureCollectives(
  device: NativeDevice,
  group: Group,
  { collectives, sizes }: MeasureOptions,
): AsyncGenerator<CollectiveTiming> {
  const { communicator, size } = group;
  if (!communicator) {
    throw new DanceError("ERR_OPTION", "bench: expected two or more ranks with a device, got one", {
      hint: "give --nproc-per-node 2, or start it with danceflux launch",
    });
  }
  const unit = 4 * size;
  for (const collective of collectives) {
    for (const wanted of sizes) {
      yield await measureOne(device, group, communicator, collective, Math.ceil(wanted / unit) * unit);
    }
  }
}
