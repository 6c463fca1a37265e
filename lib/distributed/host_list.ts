/** Slurm's short form of host names: `node[01-03,07],gpu5`, `rack[1-2]-n[08-10]`. */
import { DanceError } from "../errors.js";

const MOST = 65_536;

/** Parts at commas that are outside brackets. */
function split(list: string): string[] {
  return list.match(/(?:\[[^\]]*\]|[^,[])+/g) ?? [];
}

/** `01-03,07` as 01, 02, 03, 07: leading zeros are kept. */
function range(text: string, whole: string): string[] {
  return text.split(",").flatMap((part) => {
    const [, from, to = from] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const [first, last] = [Number(from), Number(to)];
    if (from === undefined || last < first || last - first >= MOST) {
      throw new DanceError("ERR_OPTION", `host list: expected names such as node[01-03], got ${whole}`);
    }
    return Array.from({ length: last - first + 1 }, (_, i) => String(first + i).padStart(from.length, "0"));
  });
}

function expand(name: string, whole: string): string[] {
  const [, before, inside, after] = /^([^[\]]*)\[([^\]]*)\](.*)$/.exec(name) ?? [];
  if (inside === undefined) {
    if (/[[\]]/.test(name) || name === "")
      throw new DanceError("ERR_OPTION", `host list: expected names such as node[01-03], got ${whole}`);
    return [name];
  }
  const middles = range(inside, whole);
  const ends = after === "" ? [""] : expand(after!, whole);
  if (middles.length * ends.length > MOST)
    throw new DanceError("ERR_OPTION", `host list: expected at most ${MOST} hosts, got ${whole}`);
  return middles.flatMap((middle) => ends.map((end) => `${before}${middle}${end}`));
}

/**
 * All hosts of a list, in its order.
 *
 * @throws {DanceError} `ERR_OPTION` when it is none.
 */
export function expandHostList(list: string): string[] {
  const names = split(list);
  if (names.length === 0 || names.join(",") !== list)
    throw new DanceError("ERR_OPTION", `host list: expected names such as node[01-03], got ${list}`);
  return names.flatMap((name) => expand(name, list));
}

/** Tasks on each node, from `4(x2),3`: 4, 4, 3. Undefined when it is not such a list. */
export function expandTasksPerNode(list: string): number[] | undefined {
  const counts: number[] = [];
  for (const part of list.split(",")) {
    const [, tasks, times = "1"] = /^(\d+)(?:\(x(\d+)\))?$/.exec(part) ?? [];
    if (tasks === undefined || Number(times) > MOST) return undefined;
    for (let i = 0; i < Number(times); i++) counts.push(Number(tasks));
  }
  return counts;
}
