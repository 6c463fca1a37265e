// The independent attribute check: reads count, colour, shape and background from the pixels alone and compares them with the
// caption. It shares no code and no weights with the reward model. The same readings as scripts/tiny-shapes/check.py.
//
// As a reward of type "module": the share of the four attributes that are right, 0 to 1; with the option `attribute`, one of
// count, colour, shape and background, 0 or 1.
//
// S side of the square picture; a picture is { width, height, data: bytes [S, S, 3] }.

const COUNTS = ["one", "two"];
const SHAPES = ["circle", "square", "triangle"];
const COLOURS = {
  red: [220, 30, 30],
  green: [30, 160, 50],
  blue: [40, 60, 220],
  yellow: [240, 220, 40],
  purple: [150, 40, 180],
  cyan: [40, 200, 220],
};
const BACKGROUNDS = { white: [255, 255, 255], black: [0, 0, 0], gray: [128, 128, 128] };

export const ATTRIBUTES = ["count", "colour", "shape", "background"];

const MIN_AREA = 40;
/** A component smaller than this share of the largest one is a stray mark, not an object. */
const MIN_SHARE = 0.2;
const COLOUR_LIMIT = 0.35;
const BACK_LIMIT = 0.25;
const MASK_DISTANCE = 0.3;
const IOU_LIMIT = 0.75;

/** The four attributes that a caption asks for, as places in the lists above. */
export function labelsOf(caption) {
  const words = caption.trim().split(/\s+/);
  const places = [
    COUNTS.indexOf(words[0]),
    Object.keys(COLOURS).indexOf(words[1]),
    SHAPES.indexOf(words[2]?.replace(/s$/, "")),
    Object.keys(BACKGROUNDS).indexOf(words[5]),
  ];
  if (places.includes(-1)) throw new Error(`expected a caption such as "two red circles on a gray background", got "${caption}"`);
  return places;
}

const distance = (a, b) => Math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2);

/** Place of the nearest colour of a table, or -1 when none is within the limit. */
function nearestColour(colour, table, limit) {
  const distances = Object.values(table).map((entry) => distance(colour, entry.map((level) => level / 255)));
  const least = Math.min(...distances);
  return least < limit ? distances.indexOf(least) : -1;
}

/** Sum of three neighbours along one axis; the edge repeats outwards. */
function summed(values, width, height, along) {
  const out = new Float64Array(values.length);
  const [step, size] = along === "x" ? [3, width] : [3 * width, height];
  for (let i = 0; i < values.length; i++) {
    const place = along === "x" ? Math.floor(i / 3) % width : Math.floor(i / (3 * width));
    out[i] = values[place > 0 ? i - step : i] + values[i] + values[place < size - 1 ? i + step : i];
  }
  return out;
}

/** Mean of the 3 x 3 neighbourhood: [S, S, 3] in 0..1. */
const smoothed = ({ width, height, data }) =>
  summed(summed(data, width, height, "x"), width, height, "y").map((sum) => sum / 9 / 255);

/** Per channel the lower of the middle values, over the pixels at these places. */
function medianColour(rgb, places) {
  return [0, 1, 2].map((c) => {
    const sorted = Float64Array.from(places, (place) => rgb[place * 3 + c]).sort();
    return sorted[(sorted.length - 1) >> 1];
  });
}

/** Two rows or columns along each side; corners count twice. */
function borderPlaces(width, height) {
  const places = [];
  for (const y of [0, 1, height - 2, height - 1]) for (let x = 0; x < width; x++) places.push(y * width + x);
  for (const x of [0, 1, width - 2, width - 1]) for (let y = 0; y < height; y++) places.push(y * width + x);
  return places;
}

/** Places of the pixels of each region that touches along edges, the largest region first. */
function regions(mask, width, height) {
  const seen = new Uint8Array(mask.length);
  const found = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || seen[start]) continue;
    const region = [start];
    seen[start] = 1;
    for (const place of region) {
      const x = place % width;
      const y = (place - x) / width;
      const around = [x > 0 && place - 1, x < width - 1 && place + 1, y > 0 && place - width, y < height - 1 && place + width];
      for (const next of around) {
        if (next === false || !mask[next] || seen[next]) continue;
        seen[next] = 1;
        region.push(next);
      }
    }
    found.push(region);
  }
  // Of equal ones, the region whose last pixel comes first leads.
  const last = (region) => region.reduce((most, place) => Math.max(most, place), 0);
  return found.sort((a, b) => b.length - a.length || last(a) - last(b));
}

function objectsOf(mask, width, height) {
  const all = regions(mask, width, height);
  const least = Math.max(MIN_AREA, MIN_SHARE * (all[0]?.length ?? 0));
  return all.filter((region) => region.length >= least);
}

const TEMPLATES = [(x, y) => x * x + y * y <= 1, () => true, (x, y) => Math.abs(x) <= (y + 1) / 2];

/** The shape whose template, stretched to the region's bounding box, covers it best. */
function readShape(region, width) {
  const columns = region.map((place) => place % width);
  const rows = region.map((place) => Math.floor(place / width));
  const bounds = (list) => [list.reduce((a, b) => Math.min(a, b)), list.reduce((a, b) => Math.max(a, b))];
  const [[left, right], [top, bottom]] = [bounds(columns), bounds(rows)];
  const [wide, tall] = [right - left + 1, bottom - top + 1];
  const inside = new Uint8Array(width * (bottom + 1));
  for (const place of region) inside[place] = 1;
  const overlap = TEMPLATES.map((template) => {
    let both = 0;
    let either = 0;
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) {
        const covered = template(((x + 0.5) / wide) * 2 - 1, ((y + 0.5) / tall) * 2 - 1);
        const here = inside[(top + y) * width + left + x] === 1;
        if (covered && here) both++;
        if (covered || here) either++;
      }
    }
    return both / either;
  });
  const best = overlap.indexOf(Math.max(...overlap));
  const aspect = wide / tall;
  return overlap[best] > IOU_LIMIT && aspect > 0.6 && aspect < 1.7 ? best : -1;
}

/** The common reading of all objects, or -1. */
const agree = (values) => (values.length > 0 && values.every((value) => value === values[0]) ? values[0] : -1);

/** Count, colour, shape and background of a picture as places in the lists above; -1 where nothing is legible. */
export function readAttributes(picture) {
  const { width, height } = picture;
  const rgb = smoothed(picture);
  const back = medianColour(rgb, borderPlaces(width, height));
  const mask = new Uint8Array(width * height);
  for (let place = 0, i = 0; place < mask.length; place++, i += 3) {
    const squares = (rgb[i] - back[0]) ** 2 + (rgb[i + 1] - back[1]) ** 2 + (rgb[i + 2] - back[2]) ** 2;
    mask[place] = Number(Math.sqrt(squares) > MASK_DISTANCE);
  }
  const objects = objectsOf(mask, width, height);
  const looked = objects.slice(0, 2);
  return [
    objects.length >= 1 && objects.length <= COUNTS.length ? objects.length - 1 : -1,
    agree(looked.map((region) => nearestColour(medianColour(rgb, region), COLOURS, COLOUR_LIMIT))),
    agree(looked.map((region) => readShape(region, width))),
    nearestColour(back, BACKGROUNDS, BACK_LIMIT),
  ];
}

/** Readings by picture: several attributes are rewards of their own, and look at the same pictures. */
const read = new WeakMap();

function readOnce(picture) {
  const known = read.get(picture) ?? readAttributes(picture);
  read.set(picture, known);
  return known;
}

export default {
  create({ attribute } = {}) {
    if (attribute !== undefined && !ATTRIBUTES.includes(attribute)) {
      throw new Error(`attribute: expected one of ${ATTRIBUTES.join(", ")}, got ${JSON.stringify(attribute)}`);
    }
    const places = attribute === undefined ? [0, 1, 2, 3] : [ATTRIBUTES.indexOf(attribute)];
    return (pictures, prompts) =>
      pictures.map((picture, i) => {
        const wanted = labelsOf(prompts[i]);
        const seen = readOnce(picture);
        return places.filter((place) => seen[place] === wanted[place]).length / places.length;
      });
  },
};
