/**
 * HPS-v2.1 (Wu et al. 2023): human preference as the cosine of an open_clip ViT-H/14, about 0.2 to 0.35.
 *
 * Options: `path`, the checkpoint as published (`HPS_v2.1_compressed.pt`) or its folder; `tokenizer`, a folder with CLIP's vocabulary or
 * `bpe_simple_vocab_16e6.txt.gz` (default: beside the checkpoint, else the pipeline's); `dtype`, storage of the weights (default: as in
 * the file); `roundScores: "f16"` rounds scores to half precision (default: they stay f32).
 *
 * As the published scorer does: pictures are rounded to 8 bits, resized as floats (longest side to 224, the rest zero) and not clamped
 * afterwards; prompts are cleaned by open_clip's tokenizer; the cosine is the score, without logit scale.
 *
 * DanceGRPO scores under f16 autocast, so its rewards are multiples of 2.4e-4 between 0.25 and 0.5, and samples of a group can tie: for
 * comparison with its runs `roundScores` does the same to the score. (Its features are f16 too; these stay f32.)
 */
import { stat } from "node:fs/promises";
import { dirname } from "node:path";
import type { Device } from "../device.js";
import { findOpenClipFile, type LoadedClip, loadOpenClip } from "../models/clip.js";
import { firstFile } from "../models/weights.js";
import { runJob } from "../native.js";
import { SimpleTokenizer } from "../text/index.js";
import { ClipReward, checkTokenizer, findVocabulary, type ImageEncoder, storageOf } from "./clip_scorer.js";
import { roundToF16 } from "./half.js";
import { type OptionTable, option, pathFrom } from "./options.js";
import { CLIP_MEAN, CLIP_STD } from "./processor.js";
import type { Reward, RewardSource } from "./types.js";

export const HPS_OPTIONS: OptionTable = {
  tokenizer: option.text,
  dtype: option.oneOf("f32", "bf16", "f16"),
  roundScores: option.oneOf("f16"),
};

/** The published preparation of pictures, on the device. */
export function hpsImageEncoder({ model, config }: LoadedClip): ImageEncoder {
  const preprocess = {
    size: Number(config.vision.image_size),
    mode: "max-pad" as const,
    mean: [...CLIP_MEAN],
    std: [...CLIP_STD],
    quantize: true,
  };
  return ({ images, signal }) => runJob(model.encodeImages(images, preprocess), signal);
}

/** An open_clip checkpoint with the sizes told beside it, if they are. */
export async function loadCheckpoint(
  device: Device,
  path: string,
  source: RewardSource,
): Promise<{ clip: LoadedClip; folder: string }> {
  const isFolder = await stat(path).then(
    (info) => info.isDirectory(),
    () => false,
  );
  const file = isFolder ? await findOpenClipFile(path) : path;
  const folder = dirname(file);
  const configPath = await firstFile(folder, ["open_clip_config.json"]);
  const dtype = source.dtype ?? storageOf(file);
  return { clip: await loadOpenClip(device, file, configPath, dtype, source.signal), folder };
}

export async function loadHps(source: RewardSource): Promise<Reward> {
  const { name, config, device, baseFolder } = source;
  const { clip, folder } = await loadCheckpoint(device, source.path, source);
  try {
    const given = config.tokenizer as string | undefined;
    const vocabulary = given
      ? pathFrom(baseFolder, given)
      : await findVocabulary(name, [folder, ...source.vocabularies]);
    const maxLength = Number(clip.config.text.max_position_embeddings);
    const tokenizer = await SimpleTokenizer.load(vocabulary, { maxLength });
    checkTokenizer(tokenizer, clip, name);
    const encodeImages = hpsImageEncoder(clip);
    const score = config.roundScores === "f16" ? roundToF16 : (cosine: number) => cosine;
    return new ClipReward({ name, device, clip, tokenizer, encodeImages, score });
  } catch (error) {
    clip.model.dispose();
    throw error;
  }
}
