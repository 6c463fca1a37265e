/** Text that is safe to put into a page, and numbers as people read them. */

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** For text and for attributes in double or single quotes. */
export const escaped = (text: string): string => text.replace(/[&<>"']/g, (char) => ENTITIES[char]!);

/** About that many significant digits: 0.5123, 12.34, 4560, 1.23e-5. */
export function shortNumber(value: number, significant = 4): string {
  if (!Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e6)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  const digits = Math.max(0, significant - 1 - Math.max(-1, Math.floor(Math.log10(size))));
  return String(Number(value.toFixed(digits)));
}

/** 42 s, 3 min 5 s, 2 h 10 min. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** 3.4 MiB, 12 GiB. */
export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = count < 1 ? 0 : Math.min(Math.floor(Math.log2(count) / 10), units.length - 1);
  return `${Number((count / 1024 ** step).toPrecision(3))} ${units[step]}`;
}

/** +13.9 %, -2 %; nothing when there is nothing to compare with. */
export function change(before: number, after: number): string {
  if (!(Math.abs(before) > 0)) return "";
  const percent = (100 * (after - before)) / Math.abs(before);
  return `${percent >= 0 ? "+" : "\u2212"}${Number(Math.abs(percent).toFixed(1))} %`;
}
