// CRC-32 of PNG (polynomial 0xEDB88320 reflected), a table per position so that eight bytes go in one step.

function makeTables(): Int32Array {
  const tables = new Int32Array(8 * 256);
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    tables[n] = c;
  }
  for (let t = 1; t < 8; t++)
    for (let n = 0; n < 256; n++) {
      const c = tables[(t - 1) * 256 + n]!;
      tables[t * 256 + n] = (c >>> 8) ^ tables[c & 0xff]!;
    }
  return tables;
}

const TABLES = makeTables();

/** @param crc the result for the bytes before these, when they come in parts */
export function crc32(bytes: Uint8Array, crc = 0): number {
  let c = ~crc;
  let i = 0;
  for (; i + 8 <= bytes.length; i += 8) {
    c ^= bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24);
    c =
      TABLES[7 * 256 + (c & 0xff)]! ^
      TABLES[6 * 256 + ((c >>> 8) & 0xff)]! ^
      TABLES[5 * 256 + ((c >>> 16) & 0xff)]! ^
      TABLES[4 * 256 + (c >>> 24)]! ^
      TABLES[3 * 256 + bytes[i + 4]!]! ^
      TABLES[2 * 256 + bytes[i + 5]!]! ^
      TABLES[256 + bytes[i + 6]!]! ^
      TABLES[bytes[i + 7]!]!;
  }
  for (; i < bytes.length; i++) c = (c >>> 8) ^ TABLES[(c ^ bytes[i]!) & 0xff]!;
  return ~c >>> 0;
}
