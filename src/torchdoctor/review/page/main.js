// Open the page: two tabs of questions, and the keys of the one that is shown.

import { Labels } from "./labels.js";
import { Masks } from "./masks.js";
import { get, show, unsaved } from "./server.js";

const byId = (id) => document.getElementById(id);
const SLIDES = /^(arrow|page|home|end)/; // keys that move the slider which has the focus
const panels = {};
let shown = "";

function counted() {
  for (const [name, panel] of Object.entries(panels)) {
    byId(`tab-${name}`).querySelector(".count").textContent = `${panel.answered}/${panel.items.length}`;
  }
}

function open(name) {
  shown = name;
  for (const other of ["labels", "masks"]) {
    byId(other).hidden = other !== name;
    const tab = byId(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
  }
  panels[name].start?.();
  history.replaceState(null, "", `#${name}`);
}

function pressed(event) {
  const target = event.target;
  const slider = target.matches("input[type=range]");
  const typing = (target.matches("input, select, textarea") && !slider) || byId("other").open;
  if (typing || event.altKey || !panels[shown]) return;
  let key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (!["z", "y"].includes(key)) return;
    if (key === "z" && event.shiftKey) key = "y";
  }
  if (slider && SLIDES.test(key)) return;
  const onButton = target.matches("button");
  const onShownTab = target === byId(`tab-${shown}`); // it has nothing to do for Enter
  if (onButton && key === "enter" && !onShownTab) return; // the button itself is meant
  if (onButton && target.getAttribute("role") === "tab" && key.startsWith("arrow")) {
    const other = shown === "labels" ? "masks" : "labels";
    open(other);
    byId(`tab-${other}`).focus();
    event.preventDefault();
    return;
  }
  if (event.repeat && !key.startsWith("arrow")) return; // a key that is held is one answer, not many
  if (panels[shown].key(key)) event.preventDefault();
}

// Another page of the same review may have been answered in while this one was not looked at.
async function learn() {
  try {
    const state = await get("state");
    for (const panel of Object.values(panels)) panel.learn(state);
  } catch (error) {
    show(error.message, true);
  }
}

async function begin() {
  try {
    const state = await get("state");
    byId("title").textContent = state.title;
    panels.labels = new Labels(state, counted);
    panels.masks = new Masks(state, counted);
    counted();
    for (const name of ["labels", "masks"]) byId(`tab-${name}`).addEventListener("click", () => open(name));
    const wanted = location.hash.slice(1);
    const usual = panels.labels.answered < panels.labels.items.length || !panels.masks.items.length ? "labels" : "masks";
    open(wanted in panels ? wanted : usual);
    document.addEventListener("keydown", pressed);
    window.addEventListener("focus", learn);
    window.addEventListener("beforeunload", (event) => {
      if (unsaved() || panels.masks.unsaved) event.preventDefault();
    });
  } catch (error) {
    show(error.message, true);
  }
}

begin();
