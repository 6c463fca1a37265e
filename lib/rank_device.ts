/** Which device a rank takes, where several ranks share a host and a configuration. */
import { availableParallelism, cpus } from "node:os";
import type { Place } from "./distributed/environment.js";
import { DanceError } from "./errors.js";
import type { DeviceOptions } from "./options.js";

/** What a machine has for CPU ranks, and what the environment says. */
export interface HostFacts {
  /** CPUs that this process may use, and all that there are. */
  allowed: number;
  all: number;
  /** `DANCEFLUX_THREADS` */
  threads: string | undefined;
}

const factsHere = (): HostFacts => ({
  allowed: availableParallelism(),
  all: cpus().length,
  threads: process.env.DANCEFLUX_THREADS,
});

/**
 * The device of this rank: `cuda` or `ascend` without a number is the one with the number of the rank on its host; ranks on CPUs share them
 * equally, unless they were told their threads or were bound to CPUs of their own.
 *
 * @throws {DanceError} `ERR_OPTION` when ranks of one host would share an accelerator.
 */
export function rankDevice(
  { name, ...options }: { name: string } & DeviceOptions,
  { size, localRank = 0, localSize = 1 }: Pick<Place, "size" | "localRank" | "localSize">,
  host: HostFacts = factsHere(),
): { name: string; options: DeviceOptions } {
  if (size === 1 || (localSize === 1 && name.includes(":"))) return { name, options };
  if (name === "cpu") {
    const told = options.threads !== undefined || host.threads || host.allowed < host.all;
    if (told) return { name, options };
    return { name, options: { ...options, threads: Math.max(1, Math.floor(host.allowed / localSize)) } };
  }
  if (!name.includes(":")) return { name: `${name}:${localRank}`, options };
  throw new DanceError(
    "ERR_OPTION",
    `config: device.name: expected a device without a number for ${localSize} ranks on a host, got ${JSON.stringify(name)}`,
    { hint: `"${name.split(":")[0]}": each rank then takes the one of its number` },
  );
}
