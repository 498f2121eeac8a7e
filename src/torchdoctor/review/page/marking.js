// Mark pixels of a mask: boxes, polygons and brush strokes by exact rules, with undo and redo.
// A pixel belongs to a shape where its centre lies in the shape.

const MOST_UNDONE = 100;

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height);
    this.changed = [0, height]; // the rows that were changed since they were painted
    this.proposed = false; // whether what is marked began with a proposal
    this.forget();
  }

  forget() {
    this.done = [];
    this.undone = [];
    this.step = null;
  }

  get marked() {
    return this.pixels.includes(1);
  }

  get touched() {
    return this.done.length > 0;
  }

  // A step is what undo takes back at once: the old rows of the mask that it changes, and what they were.
  begin() {
    this.step = new Map();
    this.step.proposed = this.proposed;
  }

  end() {
    const step = this.step;
    this.step = null;
    if (!step || step.size === 0) return;
    this.done.push(step);
    if (this.done.length > MOST_UNDONE) this.done.shift();
    this.undone = [];
  }

  // Take back what was done since `begin`, as if it had never been.
  abandon() {
    for (const [y, old] of this.step ?? []) this.pixels.set(old, this.row(y));
    this.step = null;
  }

  // Where a row begins that is about to change.
  row(y) {
    const start = y * this.width;
    this.changed = [Math.min(this.changed[0], y), Math.max(this.changed[1], y + 1)];
    if (this.step && !this.step.has(y)) this.step.set(y, this.pixels.slice(start, start + this.width));
    return start;
  }

  fill(y, from, to, value) {
    from = Math.max(from, 0);
    to = Math.min(to, this.width);
    if (y < 0 || y >= this.height || from >= to) return;
    const start = this.row(y);
    this.pixels.fill(value, start + from, start + to);
  }

  swap(from, to) {
    const step = from.pop();
    if (!step) return false;
    const back = new Map();
    back.proposed = this.proposed;
    this.proposed = step.proposed;
    for (const [y, old] of step) {
      const start = this.row(y);
      back.set(y, this.pixels.slice(start, start + this.width));
      this.pixels.set(old, start);
    }
    to.push(back);
    return true;
  }

  undo() {
    return this.swap(this.done, this.undone);
  }

  redo() {
    return this.swap(this.undone, this.done);
  }

  // All pixels anew, as one step.
  replace(pixels, proposed) {
    this.begin();
    for (let y = 0; y < this.height; y += 1) this.row(y);
    this.pixels.set(pixels);
    this.proposed = proposed;
    this.end();
  }

  // The pixels of a box anew, as one step: what is marked elsewhere stays.
  replaceIn([left, top, right, bottom], pixels) {
    this.begin();
    for (let y = top; y < bottom; y += 1) {
      const start = this.row(y);
      this.pixels.set(pixels.subarray(start + left, start + right), start + left);
    }
    this.proposed = true;
    this.end();
  }

  box(from, to, value) {
    const [left, top, right, bottom] = boxOf(from, to);
    for (let y = top; y < bottom; y += 1) this.fill(y, left, right, value);
  }

  // Even-odd rule: a pixel is inside where a ray from its centre crosses the outline an odd number of times.
  polygon(points, value) {
    for (let y = 0; y < this.height; y += 1) {
      const centre = y + 0.5;
      const crossings = [];
      points.forEach(([x1, y1], place) => {
        const [x2, y2] = points[(place + 1) % points.length];
        if (y1 <= centre !== y2 <= centre) crossings.push(x1 + ((centre - y1) / (y2 - y1)) * (x2 - x1));
      });
      crossings.sort((one, other) => one - other);
      for (let place = 0; place + 1 < crossings.length; place += 2) {
        this.fill(y, Math.ceil(crossings[place] - 0.5), Math.ceil(crossings[place + 1] - 0.5), value);
      }
    }
  }

  // All pixels whose centre is at most `radius` from the line between two points; never none.
  stroke(from, to, radius, value) {
    const [x1, y1] = from;
    const [x2, y2] = to;
    this.fill(Math.floor(y2), Math.floor(x2), Math.floor(x2) + 1, value);
    const length = (x2 - x1) ** 2 + (y2 - y1) ** 2;
    const inside = (x, y) => {
      const along = length === 0 ? 0 : ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length;
      const t = Math.min(Math.max(along, 0), 1);
      return (x - x1 - t * (x2 - x1)) ** 2 + (y - y1 - t * (y2 - y1)) ** 2 <= radius ** 2;
    };
    const left = Math.max(Math.floor(Math.min(x1, x2) - radius), 0);
    const right = Math.min(Math.ceil(Math.max(x1, x2) + radius), this.width);
    for (let y = Math.floor(Math.min(y1, y2) - radius); y <= Math.max(y1, y2) + radius; y += 1) {
      let first = -1;
      let end = -1;
      for (let x = left; x < right; x += 1) {
        if (inside(x + 0.5, y + 0.5)) {
          if (first < 0) first = x;
          end = x + 1;
        }
      }
      if (first >= 0) this.fill(y, first, end, value);
    }
  }

  // The lengths of runs, background first, row by row: what the server stores.
  runs() {
    const runs = [];
    let value = 0;
    let length = 0;
    for (const pixel of this.pixels) {
      if (pixel !== value) {
        runs.push(length);
        value = pixel;
        length = 0;
      }
      length += 1;
    }
    runs.push(length);
    return runs;
  }
}

// Both corners are points between 0 and the image's size; a box that is drawn has at least one pixel.
// Left, top, right and bottom of its pixels, the latter two not within.
export function boxOf([x1, y1], [x2, y2]) {
  const left = Math.floor(Math.min(x1, x2));
  const top = Math.floor(Math.min(y1, y2));
  const right = Math.max(Math.ceil(Math.max(x1, x2)), left + 1);
  return [left, top, right, Math.max(Math.ceil(Math.max(y1, y2)), top + 1)];
}

export function pixelsOf(runs, width, height) {
  const pixels = new Uint8Array(width * height);
  let place = 0;
  runs.forEach((length, number) => {
    pixels.fill(number % 2, place, place + length);
    place += length;
  });
  return pixels;
}

// The pixels of a mask for an image of another size.
export function stretched(mask, width, height) {
  const pixels = new Uint8Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const row = Math.floor(((y + 0.5) * mask.height) / height) * mask.width;
    for (let x = 0; x < width; x += 1) {
      pixels[y * width + x] = mask.pixels[row + Math.floor(((x + 0.5) * mask.width) / width)];
    }
  }
  return pixels;
}
