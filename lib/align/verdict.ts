/** A comparison in one sentence. */
import { type Comparison, type Finding, hasDrifted } from "./compare.js";

/** 2e-5, 1.3, 4.6e-1: two digits. */
export function short(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "\u221e";
  if (value === 0 || (value >= 0.1 && value < 1000)) return String(Number(value.toPrecision(2)));
  return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
}

/** `flux.transformer_blocks.0.attn.to_q` with what it is. */
export const placeOf = ({ record }: Finding): string => {
  return `${record.name} (${record.op}${record.role === "gradient" ? ", gradient" : ""}) in ${record.stage}`;
};

const worstOf = (findings: readonly Finding[]): Finding | undefined =>
  findings.reduce<Finding | undefined>(
    (most, each) => (each.error > (most?.error ?? -1) ? each : most),
    undefined,
  );

function whyNot({ first, findings, pictures }: Omit<Comparison, "sentence">): string {
  if (findings.length === 0) return "the two dumps have no tensor in common";
  if (first) return `it begins at ${placeOf(first)}: ${first.why}`;
  const late = findings.find(hasDrifted);
  if (late)
    return `no single op is to blame, but small errors have grown too large at ${placeOf(late)}: ${late.why}`;
  const seen = pictures.filter(({ differs }) => differs);
  return `every number agrees, but ${seen.length} of ${pictures.length} pictures look different`;
}

export function verdictSentence(comparison: Omit<Comparison, "sentence">): string {
  const { aligned, findings, differences } = comparison;
  const setup = differences.filter(({ kind }) => kind === "setup");
  const told = setup.slice(0, 3).map(({ name, a, b }) => `${name} is ${a} against ${b}`);
  const unlike = told.length > 0 ? ` The two sides were not set up alike: ${told.join(", ")}.` : "";
  if (!aligned) return `Not aligned: ${whyNot(comparison)}.${unlike}`;
  const equal = findings.filter(({ status }) => status === "equal").length;
  const worst = worstOf(findings);
  if (equal === findings.length) return `Aligned: all ${equal} tensors have the same bits.${unlike}`;
  return `Aligned: ${findings.length} tensors agree, ${equal} of them bit for bit; the largest relative error is ${short(worst!.error)}, at ${placeOf(worst!)}.${unlike}`;
}
