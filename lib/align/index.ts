/**
 * Does this device (build, option, library version) compute what that one does, and if not, where does it start?
 *
 *     import { compareTensors, pictureCheck, seedAll } from "danceflux/align";
 */

export {
  meanMeasures,
  measurePicture,
  PICTURE_LIMITS,
  type PictureCheck,
  type PictureMeasures,
  pictureCheck,
} from "../image/picture_check.js";
export { type CompareOptions, type Comparison, compareDumps, type Finding, type Status } from "./compare.js";
export type { HeaderDifference } from "./compare_headers.js";
export { compareTensors, type TensorDistance } from "./compare_tensors.js";
export { type Dump, type DumpHeader, type DumpRecord, type Level, readDump, type Summary } from "./dump.js";
export { differenceMap, type PicturePair } from "./picture_pairs.js";
export { type RecordOptions, type RecordResult, recordRun } from "./record.js";
export { type ReplayOptions, replayDump } from "./replay.js";
export { type Seeded, type SeedOptions, seedAll } from "./seed.js";
export { parseSide, type Side } from "./side.js";
export { memoryTensor, TensorFile, type TensorSource } from "./tensor_source.js";
export { type Family, type Precision, TOLERANCES } from "./thresholds.js";
