// Questions about labels: one key each, the surest first.

import { get, keep } from "./server.js";

const byId = (id) => document.getElementById(id);

// With a space that no line is broken at.
function percent(share) {
  if (share > 0.995) return "over 99\u00a0%";
  return share < 0.005 ? "under 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`;
}

// How well a name fits what was typed: the name itself, its beginning, the beginning of a word in it.
function closeness(name, part) {
  if (name === part) return 3;
  if (name.startsWith(part)) return 2;
  return name.split(/[\s_-]+/u).some((word) => word.startsWith(part)) ? 1 : 0;
}

export class Labels {
  constructor(state, counted) {
    this.items = state.labels;
    this.classes = state.classes;
    this.counted = counted;
    this.section = byId("labels");
    this.place = 0;
    this.history = [];
    this.skipped = new Set();
    this.busy = false;
    byId("label-worth").textContent = state.labels.length ? state.labelWorth : "";
    this.tell(state.precision);
    this.section.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button) this.do(button.dataset.do);
    });
    byId("other-text").addEventListener("input", () => this.list());
    byId("other-text").addEventListener("keydown", (event) => this.choose(event));
    byId("other").addEventListener("close", () => this.chosen());
    byId("other").addEventListener("submit", (event) => {
      const nothing = event.submitter?.value === "take" && byId("other-list").selectedIndex < 0;
      if (nothing) event.preventDefault(); // no category has such a name: type on, or cancel
    });
    for (const name of ["load", "error"]) {
      byId("label-image").addEventListener(name, () => byId("label-image").classList.remove("loading"));
    }
    byId("other-list").addEventListener("dblclick", () => byId("other").close("take"));
    this.next(-1);
  }

  get answered() {
    return this.items.filter((item) => item.answer !== "").length;
  }

  get current() {
    return this.items[this.place];
  }

  // The next question without an answer after a place; skipped ones come last.
  next(place) {
    const open = (item) => item.answer === "" && !this.skipped.has(item.id);
    let found = this.items.findIndex((item, at) => at > place && open(item));
    if (found < 0) found = this.items.findIndex(open);
    if (found < 0 && this.skipped.size) {
      this.skipped.clear();
      found = this.items.findIndex(open);
    }
    this.place = found;
    this.show();
  }

  show() {
    const finished = this.place < 0;
    this.section.querySelector(".done").hidden = !finished || !this.items.length;
    this.section.querySelector(".ask").hidden = finished;
    byId("label-progress").max = Math.max(this.items.length, 1);
    byId("label-progress").value = this.answered;
    byId("label-count").textContent = this.items.length
      ? `${this.answered} of ${this.items.length} answered`
      : "No label of this run looks wrong.";
    this.counted();
    if (finished) return;
    const item = this.current;
    this.picture(item);
    byId("label-name").textContent = item.name;
    byId("given").textContent = item.given;
    byId("proposed").textContent = item.proposed;
    byId("like-given-name").textContent = item.given;
    byId("like-proposed-name").textContent = item.proposed;
    byId("label-state").textContent =
      `The label is wrong with a probability of ${percent(item.probability)}.` +
      (item.answer === "" ? "" : ` Your answer: ${this.words(item)}.`);
    this.alike("like-given", item.likeGiven, item.given);
    this.alike("like-proposed", item.likeProposed, item.proposed);
    this.says(item);
    const next = this.items.find((one, at) => at > this.place && one.answer === "");
    if (next) new Image().src = `image/${next.id}`;
  }

  // The image before is not to be seen beside the next question.
  picture(item) {
    const image = byId("label-image");
    const address = `image/${item.id}`;
    if (image.getAttribute("src") === address) return;
    image.classList.add("loading");
    image.src = address;
    image.alt = `The image ${item.name}`;
  }

  words(item) {
    if (item.answer === "keep") return `it is ${item.given}`;
    return item.answer === "unusable" ? "not usable" : `it is ${this.classes[item.answer]}`;
  }

  alike(id, images, category) {
    const row = byId(id);
    row.replaceChildren(
      ...images.map((number) => {
        const image = document.createElement("img");
        image.src = `image/${number}?small`;
        image.alt = `A training image of ${category}`;
        return image;
      }),
    );
    if (!images.length) row.textContent = "none to show";
  }

  async says(item) {
    const place = byId("says");
    try {
      item.said ??= await get(`says/${item.id}`);
    } catch (error) {
      item.failed = error.message;
    }
    if (this.current !== item) return;
    const said = (item.said ?? []).map((one) => `${one.category} ${percent(one.probability)}`).join(", ");
    place.textContent = item.failed ?? `The network says: ${said}.`;
  }

  async answer(answer, item = this.current, remember = true) {
    if (this.busy || !item) return;
    this.busy = true;
    const before = item.answer;
    try {
      const kept = await keep(`answer/label/${item.id}`, { answer });
      item.answer = kept.answer;
      if (remember) this.history.push({ item, before });
      this.tell(kept.precision);
      if (remember) this.next(this.items.indexOf(item));
      else this.show();
    } catch {
      // The page says that it is not saved; the question stays.
    } finally {
      this.busy = false;
    }
  }

  do(action) {
    const item = this.current;
    if (action === "again") {
      this.place = 0;
      this.show();
    } else if (action === "undo") this.undo();
    else if (!item) return;
    else if (action === "keep") this.answer("keep");
    else if (action === "take") this.answer(this.classes.indexOf(item.proposed));
    else if (action === "unusable") this.answer("unusable");
    else if (action === "other") this.open();
    else if (action === "skip") {
      this.skipped.add(item.id);
      this.next(this.place);
    }
  }

  async undo() {
    const last = this.history.at(-1);
    if (!last || this.busy) return;
    await this.answer(last.before, last.item, false);
    if (last.item.answer !== last.before) return;
    this.history.pop();
    this.place = this.items.indexOf(last.item);
    this.show();
  }

  key(key) {
    const actions = { k: "keep", p: "take", c: "other", u: "unusable", s: "skip", z: "undo" };
    if (actions[key]) this.do(actions[key]);
    else if (key === "arrowleft" || key === "arrowright") {
      const step = key === "arrowleft" ? -1 : 1;
      if (this.items.length) {
        const place = this.place < 0 ? (step < 0 ? this.items.length : -1) : this.place;
        this.place = (place + step + this.items.length) % this.items.length;
        this.show();
      }
    } else return false;
    return true;
  }

  open() {
    byId("other-text").value = "";
    this.list();
    byId("other").returnValue = "";
    byId("other").showModal();
    byId("other-text").focus();
  }

  list() {
    const part = byId("other-text").value.trim().toLowerCase();
    const options = this.classes
      .map((name, number) => [name, number, name.toLowerCase()])
      .filter(([, , small]) => small.includes(part))
      .sort(([, , one], [, , other]) => closeness(other, part) - closeness(one, part))
      .map(([name, number]) => {
        const option = document.createElement("option");
        option.textContent = name;
        option.value = String(number);
        return option;
      });
    byId("other-list").replaceChildren(...options);
    byId("other-list").selectedIndex = options.length ? 0 : -1;
  }

  choose(event) {
    const list = byId("other-list");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      list.selectedIndex = Math.min(Math.max(list.selectedIndex + step, 0), list.length - 1);
    }
  }

  chosen() {
    const { value } = byId("other-list");
    if (byId("other").returnValue === "take" && value !== "") this.answer(Number(value));
  }

  // Answers that another page of the same review has given meanwhile.
  learn(state) {
    if (this.busy) return;
    const known = new Map(state.labels.map((one) => [one.id, one.answer]));
    for (const item of this.items) item.answer = known.get(item.id) ?? item.answer;
    this.tell(state.precision);
    this.show();
  }

  tell(sentences) {
    byId("precision").replaceChildren(
      ...sentences.map((sentence) => {
        const line = document.createElement("li");
        line.textContent = sentence;
        return line;
      }),
    );
  }
}
