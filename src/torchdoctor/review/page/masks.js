// Questions about objects: a mask for each image, one of each category in turn.

import { Board } from "./canvas.js";
import { Mask, pixelsOf, stretched } from "./marking.js";
import { counted, get, keep, loaded, post, show } from "./server.js";

const LEAST_SIDE = 3; // pixels of a box to cut an object out of
const byId = (id) => document.getElementById(id);

export class Masks {
  constructor(state, counted) {
    this.items = state.masks;
    this.leastMasks = state.leastMasks;
    this.masksBefore = state.masksBefore; // of other images, in the data
    this.counted = counted;
    this.section = byId("masks");
    this.board = new Board(byId("board"), () => this.tellState(), (box) => this.cutOut(box));
    this.drafts = new Map();
    this.skipped = new Set();
    this.last = null;
    this.place = -1;
    this.busy = false;
    this.cuts = 0;
    byId("mask-worth").textContent = state.maskWorth;
    this.section.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do], [data-tool], [data-category]");
      if (!button) return;
      if (button.dataset.tool) this.use(button.dataset.tool);
      else if (button.dataset.category) this.openCategory(button.dataset.category);
      else this.do(button.dataset.do);
      // After a click the keys mean the image again, not the button.
      if (event.detail) byId("board").focus({ preventScroll: true });
    });
    byId("radius").addEventListener("input", () => this.brush(Number(byId("radius").value)));
    this.brush(8);
    this.started = false;
    this.progress();
  }

  // Nothing is loaded before the tab is opened.
  start() {
    if (this.started) return;
    this.started = true;
    this.next(-1);
  }

  get answered() {
    return this.items.filter((item) => item.kind !== "").length;
  }

  get unsaved() {
    return this.drafts.size > 0 || this.begun;
  }

  // Whether something was drawn on the image that is open, if only corners of a polygon.
  get begun() {
    return Boolean(this.draft) && (this.draft.mask.touched || this.board.corners.length > 0);
  }

  next(place) {
    const open = (item) => item.kind === "" && !this.skipped.has(item.id);
    let found = this.items.findIndex((item, at) => at > place && open(item));
    if (found < 0) found = this.items.findIndex(open);
    if (found < 0 && this.skipped.size) {
      this.skipped.clear();
      found = this.items.findIndex(open);
    }
    this.open(found);
  }

  // Answers that another page of the same review has given meanwhile.
  learn(state) {
    const known = new Map(state.masks.map((one) => [one.id, one]));
    const before = this.item?.kind;
    for (const item of this.items) {
      const { kind, content } = known.get(item.id) ?? item;
      Object.assign(item, { kind, content });
    }
    const free = this.draft && !this.begun && !this.draft.mask.step;
    if (free && this.item.kind !== before) this.open(this.place);
    else this.progress();
  }

  // What is drawn and not saved stays in memory while another image is open.
  putAside() {
    if (this.begun) this.drafts.set(this.item.id, { ...this.draft, corners: this.board.corners });
    this.draft = null;
    this.board.leave();
  }

  async open(place) {
    this.putAside();
    this.place = place;
    this.item = this.items[place];
    const { item } = this;
    const finished = !item;
    this.section.querySelector(".done").hidden = !finished || !this.items.length;
    this.section.querySelector(".draw").hidden = finished;
    this.progress();
    if (finished) return;
    byId("mask-category").textContent = item.category;
    byId("mask-name").textContent = item.name;
    byId("mask-reason").textContent = item.reason;
    byId("mask-state").textContent = "Loading …";
    try {
      const [image, known] = await Promise.all([loaded(`image/${item.id}`), get(`mask/${item.id}`)]);
      if (this.item !== item) return;
      this.draft = this.drafts.get(item.id) ?? this.draftOf(known);
      this.drafts.delete(item.id);
      this.board.open(image, this.draft.mask, this.draft.corners);
      if (this.board.shows.evidence) this.loadEvidence();
      this.tellState();
    } catch (error) {
      if (this.item !== item) return;
      this.board.draw(); // no image, rather than the one before
      byId("mask-state").textContent = `${error.message} Skip it.`;
    }
  }

  draftOf(known) {
    const mask = new Mask(known.width, known.height);
    if (known.runs) mask.pixels = pixelsOf(known.runs, known.width, known.height);
    mask.proposed = known.kind.includes("proposal");
    return { mask, corners: [] };
  }

  tellState() {
    if (!this.draft) return;
    const { mask } = this.draft;
    const { kind, content } = this.item;
    const share = mask.pixels.reduce((sum, pixel) => sum + pixel, 0) / mask.pixels.length;
    let text = share > 0 ? `${(100 * share).toFixed(1)} % of the image is marked.` : "Nothing is marked.";
    if (this.board.corners.length) text += ` Polygon of ${counted(this.board.corners.length, "corner")}; F closes it.`;
    if (kind) text += content === "no object" ? " Answered: no object." : ` Saved mask: ${kind}.`;
    if (mask.touched) text += " Not saved yet.";
    if (mask.touched && mask.proposed) text += " A proposal: correct it, or accept it with Enter.";
    byId("mask-state").textContent = text;
  }

  progress() {
    byId("mask-progress").max = Math.max(this.items.length, 1);
    byId("mask-progress").value = this.answered;
    byId("mask-count").textContent = this.items.length
      ? `${this.answered} of ${this.items.length} answered`
      : "Every image whose mask would teach much has one.";
    const drawn = this.items.filter((item) => item.kind && item.content !== "no object").length;
    const withMask = this.masksBefore + drawn;
    const missing = this.leastMasks - withMask;
    byId("enough").textContent =
      withMask >= this.leastMasks || !this.items.length
        ? ""
        : `From ${this.leastMasks} masks on, a checkup trains with them; ${missing} more ${missing === 1 ? "is" : "are"} needed.`;
    const categories = new Map();
    for (const item of this.items) {
      const [done, all] = categories.get(item.category) ?? [0, 0];
      categories.set(item.category, [done + (item.kind ? 1 : 0), all + 1]);
    }
    byId("categories").replaceChildren(
      ...[...categories].map(([category, [done, all]]) => {
        const line = document.createElement("li");
        const button = document.createElement("button");
        button.dataset.category = category;
        button.textContent = `${category} ${done}/${all}`;
        button.classList.toggle("full", done === all);
        if (this.item?.category === category) button.setAttribute("aria-current", "true");
        line.append(button);
        return line;
      }),
    );
    this.counted();
  }

  openCategory(category) {
    const place = this.items.findIndex((item) => item.category === category && !item.kind);
    this.open(place >= 0 ? place : this.items.findIndex((item) => item.category === category));
  }

  use(tool) {
    this.board.giveUp();
    if (this.board.tool === "polygon" && tool !== "polygon") this.board.closePolygon();
    this.board.tool = tool;
    for (const button of byId("tools").children) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
  }

  brush(radius) {
    this.board.radius = Math.min(Math.max(radius, 1), 80);
    byId("radius").value = this.board.radius;
    byId("radius-text").textContent = `${this.board.radius} px`;
  }

  replace(pixels, proposed = false) {
    this.draft.mask.replace(pixels, proposed);
    this.board.refresh();
    this.tellState();
  }

  async proposal() {
    const { item, draft } = this;
    try {
      const { runs } = await get(`proposal/${item.id}`);
      if (this.draft !== draft) return;
      const pixels = pixelsOf(runs, draft.mask.width, draft.mask.height);
      const place = pixels.includes(1) ? "everywhere" : "nowhere";
      if (pixels.includes(1) && pixels.includes(0)) this.replace(pixels, true);
      else byId("mask-state").textContent = `The network looks ${place} here: there is no proposal.`;
    } catch (error) {
      show(error.message, true);
    }
  }

  // What is drawn while the server cuts, or another box, goes before what it answers.
  async cutOut(box) {
    const { item, draft } = this;
    const { mask } = draft;
    const { length } = mask.done;
    const [left, top, right, bottom] = box;
    if (Math.min(right - left, bottom - top) < LEAST_SIDE) {
      byId("mask-state").textContent = "Drag a box around the whole object to cut it out.";
      return;
    }
    const number = (this.cuts += 1);
    byId("mask-state").textContent = "Cutting the object out …";
    try {
      const { runs } = await post(`cut-out/${item.id}`, { box });
      if (this.draft !== draft || number !== this.cuts || mask.step || mask.done.length !== length) return;
      mask.replaceIn(box, pixelsOf(runs, mask.width, mask.height));
      this.board.refresh();
    } catch (error) {
      show(error.message, true);
    }
    if (this.draft === draft) this.tellState();
  }

  async loadEvidence() {
    const { item } = this;
    try {
      const evidence = await loaded(`evidence/${item.id}`);
      if (this.item !== item) return;
      this.board.evidence = evidence;
      this.board.draw();
    } catch {
      show("There is no map of evidence of this image.", true);
    }
  }

  async save(body, sent = this.draft) {
    const { item } = this;
    if (this.busy) return;
    this.busy = true;
    try {
      const kept = await keep(`answer/mask/${item.id}`, body);
      Object.assign(item, { kind: kept.kind, content: kept.content });
      sent.mask.forget();
      if (this.draft === sent) this.board.corners = [];
      this.drafts.delete(item.id);
      if (body.remove) {
        sent.mask.pixels.fill(0);
        this.open(this.place);
      } else if (this.item === item) this.next(this.place);
      else this.progress();
    } catch {
      // The page says that it is not saved; the drawing stays.
    } finally {
      this.busy = false;
    }
  }

  do(action) {
    const { board, draft } = this;
    if (action === "again") this.open(0);
    if (action === "back" && this.items.length) {
      this.open((this.place > 0 ? this.place : this.items.length) - 1);
      return;
    }
    if (action === "skip" && this.item) {
      this.skipped.add(this.item.id);
      this.next(this.place);
      return;
    }
    if (!draft) return;
    const { mask } = draft;
    if (action === "save") {
      if (board.corners.length === 1 || board.corners.length === 2) {
        show("A polygon needs three corners: click on the others, or take these back with Undo.", true);
        return;
      }
      if (board.corners.length) board.closePolygon();
      if (!mask.marked) {
        show("Nothing is marked: mark the object, or answer that there is none.", true);
        return;
      }
      this.last = mask;
      this.save({ runs: mask.runs(), proposed: mask.proposed });
    } else if (action === "none") this.save({ noObject: true });
    else if (action === "remove") {
      if (this.item.kind) this.save({ remove: true });
      else show("This image has no saved answer. Clear takes away what you have drawn.", true);
    }
    else if (action === "whole") this.replace(new Uint8Array(mask.pixels.length).fill(1));
    else if (action === "clear") this.replace(new Uint8Array(mask.pixels.length));
    else if (action === "last") this.sameAsLast();
    else if (action === "proposal") this.proposal();
    else if (action === "undo") board.undo();
    else if (action === "redo") board.redo();
    else if (action === "close") board.closePolygon();
    else if (action === "closer") board.zoom(1.5);
    else if (action === "farther") board.zoom(1 / 1.5);
    else if (action === "fit") board.fit();
    else if (action === "evidence") {
      board.shows.evidence = !board.shows.evidence;
      this.section.querySelector("[data-do=evidence]").setAttribute("aria-pressed", String(board.shows.evidence));
      if (board.shows.evidence && !board.evidence) this.loadEvidence();
      board.draw();
    }
  }

  sameAsLast() {
    const { width, height } = this.draft.mask;
    if (this.last) this.replace(stretched(this.last, width, height));
    else show("No mask has been saved since the page was opened.", true);
  }

  key(key) {
    const tools = { 1: "box", 2: "polygon", 3: "brush", 4: "eraser", 5: "hand", c: "cut" };
    const actions = {
      enter: "save", a: "proposal", l: "last", w: "whole", n: "none", v: "evidence", s: "skip", q: "back",
      z: "undo", y: "redo", x: "clear", f: "close", 0: "fit", "+": "closer", "=": "closer", "-": "farther",
      delete: "remove",
    };
    const moves = { arrowleft: [60, 0], arrowright: [-60, 0], arrowup: [0, 60], arrowdown: [0, -60] };
    if (tools[key]) this.use(tools[key]);
    else if (actions[key]) this.do(actions[key]);
    else if (moves[key]) this.board.pan(...moves[key]);
    else if (key === "[" || key === "]") this.brush(this.board.radius + (key === "[" ? -2 : 2));
    else if (key === "escape" && this.board.corners.length) {
      this.board.corners = [];
      this.board.draw();
      this.tellState();
    } else return false;
    return true;
  }
}
