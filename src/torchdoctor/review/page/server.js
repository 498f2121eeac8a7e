// Ask the server. The token is a part of the page's own address, so all addresses here are relative.

const say = document.getElementById("saved");
let waiting = 0;

export function show(text, bad = false) {
  say.textContent = text;
  say.classList.toggle("bad", bad);
}

export function counted(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

async function explained(response) {
  if (response.ok) return response.json();
  const text = (await response.text()).trim();
  if (response.status === 403) {
    throw new Error("The server was started anew: open the address that it printed.");
  }
  throw new Error(text || `The server answered ${response.status}.`);
}

async function reached(address, options) {
  try {
    return await fetch(address, options);
  } catch {
    throw new Error("The server cannot be reached: start torchdoctor review again.");
  }
}

export function loaded(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The image cannot be loaded: it is gone, or has changed."));
    image.src = address;
  });
}

export async function get(address) {
  return explained(await reached(address));
}

export async function post(address, body) {
  const headers = { "Content-Type": "application/json", "X-Torchdoctor-Review": "1" };
  return explained(await reached(address, { method: "POST", headers, body: JSON.stringify(body) }));
}

// Resolves when the answer is on the disk; only then the page says so.
export async function keep(address, body) {
  waiting += 1;
  show("Saving …");
  try {
    const answer = await post(address, body);
    waiting -= 1;
    if (waiting === 0) show("Saved");
    return answer;
  } catch (error) {
    waiting -= 1;
    show(`NOT saved. ${error.message}`, true);
    throw error;
  }
}

export function unsaved() {
  return waiting > 0;
}
