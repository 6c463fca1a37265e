/**
 * CLIP score and PickScore: the cosine of a picture and its prompt by a model in the CLIPModel layout of transformers, or (clip only) in the
 * open_clip layout.
 *
 * Options of both: `path`, the model's folder; `tokenizer`, a folder with its vocabulary (default: the model's own, else the pipeline's);
 * `dtype`, storage of the weights (default: as in the file).
 *
 * - `clip`: `times100` (default false), `clampZero` (default false: a negative cosine stays).
 * - `pickscore`: `scale`: `"cosine"` (default, what DanceGRPO trains with) or `"logit"`, the published score exp(logit scale) * cosine, about
 *   18 to 26.
 *
 * Pictures are prepared by the arithmetic of the published processors (8-bit Pillow bicubic; see pillow.ts).
 */
import { join } from "node:path";
import type { Device } from "../device.js";
import { findOpenClipFile, type LoadedClip, loadClipFolder } from "../models/clip.js";
import { Fields } from "../models/fields.js";
import { firstFile, weightFiles } from "../models/weights.js";
import { runJob } from "../native.js";
import { ClipTokenizer, SimpleTokenizer, type Tokenizer } from "../text/index.js";
import { ClipReward, checkTokenizer, findVocabulary, type ImageEncoder, storageOf } from "./clip_scorer.js";
import { loadCheckpoint } from "./hps.js";
import { type OptionTable, option, pathFrom } from "./options.js";
import { clipProcessor, type ImageProcessor, pixelValues, readProcessor } from "./processor.js";
import type { Reward, RewardSource } from "./types.js";

const MODEL_OPTIONS: OptionTable = { tokenizer: option.text, dtype: option.oneOf("f32", "bf16", "f16") };

export const CLIP_OPTIONS: OptionTable = { ...MODEL_OPTIONS, times100: option.flag, clampZero: option.flag };
export const PICKSCORE_OPTIONS: OptionTable = { ...MODEL_OPTIONS, scale: option.oneOf("cosine", "logit") };

/** Prepares pictures on the host, exactly, and encodes them on the device. */
export function processedImageEncoder(
  device: Device,
  { model }: LoadedClip,
  processor: ImageProcessor,
): ImageEncoder {
  return async ({ pictures, signal }) => {
    const prepared = await pictures();
    const values = pixelValues(prepared, processor);
    using pixels = await runJob(
      device.handle.upload(values, [prepared.length, 3, processor.crop, processor.crop]),
      signal,
    );
    return await runJob(model.encodeImages(pixels, "pixelValues"), signal);
  };
}

interface Scorer {
  clip: LoadedClip;
  tokenizer: Tokenizer;
  processor: ImageProcessor;
}

async function vocabularyOf(
  { name, config, baseFolder, vocabularies }: RewardSource,
  folder: string,
): Promise<string> {
  const given = config.tokenizer as string | undefined;
  return given ? pathFrom(baseFolder, given) : findVocabulary(name, [folder, ...vocabularies]);
}

async function loadTransformersLayout(source: RewardSource): Promise<Scorer> {
  const { device, path, signal } = source;
  const [file] = await weightFiles(path, "model");
  const clip = await loadClipFolder(device, path, source.dtype ?? storageOf(file!), signal);
  try {
    const maxLength = Number(clip.config.text.max_position_embeddings);
    const tokenizer = await ClipTokenizer.load(await vocabularyOf(source, path), { maxLength });
    return { clip, tokenizer, processor: await readProcessor(path, Number(clip.config.vision.image_size)) };
  } catch (error) {
    clip.model.dispose();
    throw error;
  }
}

async function loadOpenClipLayout(source: RewardSource): Promise<Scorer> {
  const { clip, folder } = await loadCheckpoint(source.device, await findOpenClipFile(source.path), source);
  try {
    const maxLength = Number(clip.config.text.max_position_embeddings);
    const tokenizer = await SimpleTokenizer.load(await vocabularyOf(source, folder), { maxLength });
    const processor = clipProcessor(Number(clip.config.vision.image_size));
    const file = await Fields.read(join(folder, "open_clip_config.json")).catch(() => undefined);
    const own = file?.has("preprocess_cfg") ? file.object("preprocess_cfg") : undefined;
    const mean = own?.raw("mean") as number[] | undefined;
    const std = own?.raw("std") as number[] | undefined;
    return {
      clip,
      tokenizer,
      processor: { ...processor, mean: mean ?? processor.mean, std: std ?? processor.std },
    };
  } catch (error) {
    clip.model.dispose();
    throw error;
  }
}

async function loadScorer(source: RewardSource): Promise<Scorer> {
  const transformers = await firstFile(source.path, ["config.json"]);
  const scorer = await (transformers ? loadTransformersLayout(source) : loadOpenClipLayout(source));
  try {
    checkTokenizer(scorer.tokenizer, scorer.clip, source.name);
    return scorer;
  } catch (error) {
    scorer.clip.model.dispose();
    throw error;
  }
}

function reward(
  source: RewardSource,
  { clip, tokenizer, processor }: Scorer,
  score: (cosine: number) => number,
): Reward {
  const { name, device } = source;
  const encodeImages = processedImageEncoder(device, clip, processor);
  return new ClipReward({ name, device, clip, tokenizer, encodeImages, score });
}

export async function loadClipScore(source: RewardSource): Promise<Reward> {
  const { times100 = false, clampZero = false } = source.config;
  const factor = times100 ? 100 : 1;
  const least = clampZero ? 0 : Number.NEGATIVE_INFINITY;
  return reward(source, await loadScorer(source), (cosine) => factor * Math.max(cosine, least));
}

export async function loadPickScore(source: RewardSource): Promise<Reward> {
  const scorer = await loadScorer(source);
  const factor = source.config.scale === "logit" ? scorer.clip.logitScale : 1;
  return reward(source, scorer, (cosine) => factor * cosine);
}
