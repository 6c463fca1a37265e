// Pictures: reading, writing, comparing, arranging.

export { createPicture, type GridOptions, type Picture, pictureGrid } from "./picture.js";
export { decodePng } from "./png_read.js";
export { encodePng, encodePngSync, type PngOptions } from "./png_write.js";
export { psnr, ssim } from "./quality.js";
export { decodePicture, readPicture } from "./read.js";
export { AsyncImageWriter, type ImageWriterOptions, type ImageWriterStats } from "./writer.js";
