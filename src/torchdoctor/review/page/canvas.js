// An image with its mask on a canvas: zoom, pan, and drawing with a pointer, a finger or two.

import { boxOf } from "./marking.js";

const INK = [0, 150, 255, 105]; // the object, over the image
const EDGE = [0, 235, 255, 235]; // its outermost pixels
const PIXELATED = 3; // screen pixels of an image pixel from which pixels are shown as squares
const MOST_ZOOM = 40;
const CLOSING = 12; // screen pixels from the first corner within which a polygon is closed

export class Board {
  constructor(canvas, changed, boxed) {
    this.canvas = canvas;
    this.changed = changed;
    this.boxed = boxed; // called with the box that was drawn with the tool "cut"
    this.tool = "box";
    this.radius = 8;
    this.shows = { evidence: false, mask: true };
    this.pointers = new Map();
    this.corners = [];
    this.drag = null;
    this.layer = document.createElement("canvas");
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.up(event));
    }
    canvas.addEventListener("dblclick", () => this.closePolygon());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  open(image, mask, corners = []) {
    this.leave();
    this.image = image;
    this.mask = mask;
    this.corners = corners;
    this.layer.width = mask.width;
    this.layer.height = mask.height;
    mask.changed = [0, mask.height];
    this.resize();
    this.fit();
    this.refresh();
  }

  // The image stays to be seen until another is there, but nothing can be drawn on it.
  leave() {
    this.giveUp();
    this.mask = null;
    this.evidence = null;
    this.corners = [];
    this.hover = null;
    this.pointers.clear();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(Math.round(clientWidth * ratio), 1);
    this.canvas.height = Math.max(Math.round(clientHeight * ratio), 1);
    if (this.mask && this.fitted) this.fit();
    this.draw();
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const room = 8;
    this.scale = Math.max(
      Math.min((clientWidth - room) / this.mask.width, (clientHeight - room) / this.mask.height),
      0.01,
    );
    this.least = Math.min(this.scale, 1);
    this.x = (clientWidth - this.scale * this.mask.width) / 2;
    this.y = (clientHeight - this.scale * this.mask.height) / 2;
    this.fitted = true;
    this.draw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.mask) return;
    const scale = Math.min(Math.max(this.scale * factor, this.least / 2), MOST_ZOOM);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.fitted = false;
    this.draw();
  }

  // The point of the image under a point of the screen, inside the image.
  point(event) {
    const inside = (value, most) => Math.min(Math.max(value, 0), most - 1e-6);
    return [
      inside((event.offsetX - this.x) / this.scale, this.mask.width),
      inside((event.offsetY - this.y) / this.scale, this.mask.height),
    ];
  }

  down(event) {
    if (!this.mask || event.button > 1) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.pointers.size > 1 || event.button === 1 || this.tool === "hand") {
      this.giveUp();
      return;
    }
    this.tapped = null;
    const point = this.point(event);
    if (this.tool === "polygon") {
      this.corner(event, point);
      return;
    }
    this.drag = { start: point, end: point, id: event.pointerId };
    this.mask.begin();
    if (!this.drawsBox) {
      this.mask.stroke(point, point, this.radius, this.value);
      this.refresh();
    }
    this.draw();
  }

  get drawsBox() {
    return this.tool === "box" || this.tool === "cut";
  }

  get value() {
    return this.tool === "eraser" ? 0 : 1;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      if (this.corners.length) {
        this.hover = this.point(event);
        this.draw();
      }
      return;
    }
    const now = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, now);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
      this.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      if (apart(before) > 0) this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      return;
    }
    if (!this.drag) {
      if (this.tool === "hand" || event.buttons & 4) this.pan(now[0] - before[0], now[1] - before[1]);
      return;
    }
    const point = this.point(event);
    if (!this.drawsBox) {
      this.mask.stroke(this.drag.end, point, this.radius, this.value);
      this.refresh();
    }
    this.drag.end = point;
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    const drag = this.drag;
    if (!drag || drag.id !== event.pointerId) return;
    this.drag = null;
    if (event.type === "pointercancel") {
      this.mask.abandon();
    } else {
      if (this.tool === "box") this.mask.box(drag.start, this.point(event), 1);
      this.mask.end();
      if (this.tool === "cut") {
        this.draw();
        this.boxed(boxOf(drag.start, this.point(event)));
        return;
      }
    }
    this.refresh();
    this.changed();
  }

  // A second finger, or another tool: what was begun is taken back.
  giveUp() {
    if (this.tapped && this.pointers.size > 1) {
      this.corners = this.corners.filter((corner) => corner !== this.tapped);
      this.changed();
    }
    this.tapped = null;
    if (this.drag) {
      this.drag = null;
      this.mask.abandon();
      this.refresh();
    }
  }

  corner(event, point) {
    const first = this.corners[0];
    const near =
      first && Math.hypot(point[0] - first[0], point[1] - first[1]) * this.scale < CLOSING && this.corners.length > 2;
    if (near) {
      this.closePolygon();
      return;
    }
    this.corners.push(point);
    this.tapped = point;
    this.hover = null;
    this.draw();
    this.changed();
  }

  closePolygon() {
    const corners = this.corners;
    this.corners = [];
    this.hover = null;
    if (corners.length > 2) {
      this.mask.begin();
      this.mask.polygon(corners, 1);
      this.mask.end();
      this.refresh();
    }
    this.draw();
    this.changed();
  }

  undo() {
    if (this.corners.length) this.corners.pop();
    else this.mask.undo();
    this.refresh();
    this.changed();
  }

  redo() {
    this.mask.redo();
    this.refresh();
    this.changed();
  }

  // Paint the rows of the mask that changed, and those beside them, into its layer.
  refresh() {
    const { width, height, pixels, changed } = this.mask;
    const top = Math.max(changed[0] - 1, 0);
    const bottom = Math.min(changed[1] + 1, height);
    this.mask.changed = [height, 0];
    if (top < bottom) this.paint(width, top, bottom, pixels);
    this.draw();
  }

  paint(width, top, bottom, pixels) {
    const context = this.layer.getContext("2d");
    const picture = context.createImageData(width, bottom - top);
    const colours = new Uint32Array(picture.data.buffer);
    const [ink, edge] = [INK, EDGE].map((colour) => new Uint32Array(new Uint8Array(colour).buffer)[0]);
    for (let place = top * width; place < bottom * width; place += 1) {
      if (!pixels[place]) continue;
      const inner =
        pixels[place - 1] && pixels[place + 1] && pixels[place - width] && pixels[place + width];
      colours[place - top * width] = inner ? ink : edge;
    }
    context.putImageData(picture, 0, top);
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.mask || !this.image) return;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = this.scale < PIXELATED;
    context.drawImage(this.image, 0, 0, this.mask.width, this.mask.height);
    if (this.shows.evidence && this.evidence) {
      context.drawImage(this.evidence, 0, 0, this.mask.width, this.mask.height);
    }
    if (this.shows.mask) context.drawImage(this.layer, 0, 0);
    this.outline(context);
  }

  outline(context) {
    context.lineWidth = 2 / this.scale;
    for (const [colour, dash] of [["#ffffff", []], ["#003c8f", [6 / this.scale, 6 / this.scale]]]) {
      context.strokeStyle = colour;
      context.setLineDash(dash);
      context.beginPath();
      if (this.drag && this.drawsBox) {
        const [[x1, y1], [x2, y2]] = [this.drag.start, this.drag.end];
        context.rect(Math.min(x1, x2), Math.min(y1, y2), Math.abs(x2 - x1), Math.abs(y2 - y1));
      }
      const corners = this.hover ? [...this.corners, this.hover] : this.corners;
      corners.forEach(([x, y], place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
    }
    context.setLineDash([]);
    context.fillStyle = "#ffffff";
    for (const [x, y] of this.corners) {
      context.beginPath();
      context.arc(x, y, 5 / this.scale, 0, 2 * Math.PI);
      context.fill();
      context.strokeStyle = "#003c8f";
      context.stroke();
    }
  }
}
