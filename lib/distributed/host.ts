/** Which host is this? Two processes are on one host when they could share memory and reach each other's sockets. */
import { readFileSync, readlinkSync, statSync } from "node:fs";
import { hostname } from "node:os";

const attempt = (read: () => string): string => {
  try {
    return read().trim();
  } catch {
    return "";
  }
};

/**
 * Equal for all processes of one host, and for no others: the kernel's boot, the host's name, the namespaces of network and of process
 * numbers, and the file system that shared memory lives in. Containers of one machine are hosts of their own unless they share all of it.
 */
export function hostKey(): string {
  return [
    attempt(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8")),
    hostname(),
    attempt(() => readlinkSync("/proc/self/ns/net")),
    attempt(() => readlinkSync("/proc/self/ns/pid")),
    attempt(() => String(statSync("/dev/shm").dev)),
  ].join(" ");
}

/** A rank's place among those of its host, which are numbered in rank order. */
export function localPlace(keys: readonly string[], rank: number): { localRank: number; localSize: number } {
  const own = keys[rank];
  const mates = keys.flatMap((key, index) => (key === own ? [index] : []));
  return { localRank: mates.indexOf(rank), localSize: mates.length };
}
