/** The nearest known word to one that is not known, for error messages. */

/** Fewest single-letter changes between two words. */
export function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length]!;
}

/** The entry of `known` (at least one) that begins with `word`, or else needs the fewest changes to become it. */
export function nearest(word: string, known: readonly string[]): string {
  const begun = word.length >= 2 ? known.find((entry) => entry.startsWith(word)) : undefined;
  if (begun !== undefined) return begun;
  return known.reduce((best, entry) => (editDistance(entry, word) < editDistance(best, word) ? entry : best));
}
