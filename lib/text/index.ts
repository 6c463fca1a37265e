// Strings to token ids.

export { cleanPrompt, repairText, unescapeHtml } from "./clean.js";
export { ClipTokenizer } from "./clip.js";
export { loadTokenizer } from "./load.js";
export { SimpleTokenizer, type SimpleTokenizerOptions } from "./simple.js";
export { T5Tokenizer } from "./t5.js";
export type { Tokenizer, TokenizerOptions } from "./tokenizer.js";
