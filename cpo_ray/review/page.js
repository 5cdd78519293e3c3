"use strict";
// A verdict is shown as given only when the server has it on disk; until then its mark is dashed.

const KEYS = { y: "confirmed", n: "rejected", u: "unsure", Backspace: "open" };
const MARKS = [["confirmed", "✓", "Confirm"], ["rejected", "✕", "Reject"], ["unsure", "?", "Unsure"]];
const PATIENCE = 15000;

const at = (id) => document.getElementById(id);
let review = null; // what the server said of all pictures
let shown = null; // the picture on the page, with its number and its labels in the order of the page
let current = 0; // the label that keys judge
const wanted = new Map(); // label → verdict that is not on disk yet
let saving = null;

// The token came behind the # of the address, which no browser sends. It is kept for this tab and this port alone.
function admit() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) sessionStorage.setItem("token", token);
  history.replaceState(null, "", "/");
}

async function reach(path, body) {
  const options = { signal: AbortSignal.timeout(PATIENCE), headers: { Authorization: `Bearer ${sessionStorage.getItem("token")}` } };
  if (body) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the review does not answer; is it still running in its terminal?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({ error: `the review answered ${response.status}` }));
  throw new Error(answer.error);
}

const ask = async (path, body) => (await reach(path, body)).json();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---- saving

function judge(verdict) {
  const label = shown.labels[current];
  if (!label) return;
  wanted.set(label.id, verdict);
  draw();
  if (verdict !== "open") move(1);
  save();
}

function save() {
  saving ??= drain().finally(() => (saving = null));
  return saving;
}

// True when everything is on disk. What was judged meanwhile goes with the next request.
async function drain() {
  while (wanted.size) {
    const sent = new Map(wanted);
    const picture = shown;
    try {
      const answer = await ask(`/pictures/${picture.number}`, { sample: picture.id, verdicts: Object.fromEntries(sent) });
      review.finished[picture.number] = answer.finished;
    } catch (error) {
      complain(`Not saved: ${error.message}`);
      draw();
      return false;
    }
    for (const label of picture.labels) {
      if (!sent.has(label.id)) continue;
      label.verdict = sent.get(label.id);
      if (wanted.get(label.id) === label.verdict) wanted.delete(label.id);
    }
    complain("");
    draw();
  }
  return true;
}

function complain(sentence) {
  at("problem").textContent = sentence;
  at("trouble").hidden = !sentence;
}

// ---- going through the pictures

async function go(number) {
  if (number < 0 || number >= review.finished.length || !(await save())) return;
  try {
    const picture = await ask(`/pictures/${number}`);
    picture.number = number;
    picture.labels = picture.roots.flatMap((root) => [...root.positive, ...root.negative]);
    shown = picture;
  } catch (error) {
    complain(`The picture cannot be shown: ${error.message}`);
    again = () => go(number);
    return;
  }
  complain("");
  current = Math.max(0, shown.labels.findIndex((label) => label.verdict === "open"));
  at("end").hidden = true;
  at("desk").hidden = at("foot").hidden = false;
  showPicture();
  showLabels();
  draw();
  at("labels").scrollTop = 0;
  scrollTo(0, 0);
  focusLabel();
  if (number + 1 < review.finished.length) image(number + 1).catch(() => {}); // it is asked for again, and told, when it is shown
}

async function confirmRest() {
  if (!shown) return;
  for (const label of shown.labels) if ((wanted.get(label.id) ?? label.verdict) === "open") wanted.set(label.id, "confirmed");
  draw();
  if (!(await save())) return;
  const next = unfinishedAfter(shown.number);
  if (next < 0) finish();
  else go(next);
}

function unfinishedAfter(number) {
  const after = review.finished.indexOf(false, number + 1);
  return after < 0 ? review.finished.indexOf(false) : after;
}

async function finish() {
  try {
    review = await ask("/review");
  } catch (error) {
    complain(error.message);
    again = finish;
    return;
  }
  complain("");
  const { confirmed, rejected, unsure } = review.verdicts;
  const pictures = review.finished.length;
  at("sum").textContent = `${pictures} ${pictures === 1 ? "picture" : "pictures"}: ${confirmed} labels confirmed, ${rejected} rejected, ${unsure} unsure.`;
  shown = null;
  at("desk").hidden = at("foot").hidden = true;
  at("end").hidden = false;
  drawBar();
  at("end").querySelector("h2").focus();
}

// Pictures need the token, too: they are fetched here and shown from memory, where the last few stay.
const kept = new Map();

function image(number) {
  if (!kept.has(number)) {
    const fetched = reach(`/pictures/${number}/image`).then((answer) => answer.blob()).then((data) => URL.createObjectURL(data));
    kept.set(number, fetched);
    fetched.catch(() => kept.delete(number));
  }
  for (const [other, address] of kept) {
    if (Math.abs(other - number) < 3) continue;
    kept.delete(other);
    address.then(URL.revokeObjectURL, () => {});
  }
  return kept.get(number);
}

async function showPicture() {
  const { number, prompt, width, height } = shown;
  at("prompt").textContent = prompt;
  for (const place of [at("picture"), at("whole")]) {
    place.removeAttribute("src");
    place.alt = prompt;
    place.classList.toggle("pixelated", Math.max(width, height) <= 128);
  }
  try {
    const address = await image(number);
    if (shown?.number === number) at("picture").src = at("whole").src = address;
  } catch (error) {
    if (shown?.number === number) complain(`The picture cannot be shown: ${error.message}`);
    again = () => go(number);
  }
}

// ---- the labels

function showLabels() {
  at("labels").replaceChildren(...shown.roots.map((root) => {
    const sides = make("div", { class: "sides" }, side(root, "positive", "+ Positive"), side(root, "negative", "− Negative"));
    return make("section", { "aria-label": root.label }, make("h2", {}, root.label), sides);
  }));
  if (!shown.labels.length) at("labels").replaceChildren(make("p", { class: "nothing" }, "This picture has no labels."));
}

function side(root, name, title) {
  const rows = root[name].map((label) => row(label, name));
  return make("div", { class: `side ${name}${rows.length ? "" : " empty"}` }, make("h3", {}, title), ...(rows.length ? rows : [make("p", { class: "nothing" }, "none")]));
}

function row(label, name) {
  const place = shown.labels.indexOf(label);
  const sign = name === "positive" ? ["+", "plus"] : ["−", "minus"];
  const spoken = make("span", { class: "unseen", id: `spoken-${place}` }, `${label.definition} What to look for: ${label.cue}`);
  const element = make("div", { class: "label", role: "group", "aria-describedby": `spoken-${place}` },
    make("span", { class: `sign ${sign[1]}`, "aria-hidden": "true" }, sign[0]), make("span", { class: "phrase" }, label.phrase), spoken);
  for (const [verdict, mark, title] of MARKS) {
    const button = make("button", { type: "button", class: verdict, "aria-label": `${title}: ${label.phrase}`, title }, mark);
    button.addEventListener("click", () => {
      current = place;
      judge((wanted.get(label.id) ?? label.verdict) === verdict ? "open" : verdict);
      focusLabel(); // or Enter would press this button again
    });
    element.append(button);
  }
  element.addEventListener("click", (event) => { if (event.target.tagName !== "BUTTON") { current = place; draw(); focusLabel(); } });
  element.addEventListener("mouseenter", () => tell(label));
  element.addEventListener("mouseleave", () => tell(shown?.labels[current]));
  element.addEventListener("focusin", () => { if (current !== place) { current = place; draw(); } });
  return element;
}

// Brings the page in line with what is known; elements stay, so that the focus does.
function draw() {
  if (!shown) return;
  document.querySelectorAll(".label").forEach((element, place) => {
    const label = shown.labels[place];
    const side = label.id[0] === "+" ? "positive" : "negative";
    const here = place === current;
    element.classList.toggle("rejected", label.verdict === "rejected");
    element.setAttribute("aria-current", here);
    element.setAttribute("aria-label", `${side}: ${label.phrase}, ${label.verdict === "open" ? "not judged" : label.verdict}`);
    element.tabIndex = here ? 0 : -1;
    for (const button of element.querySelectorAll("button")) {
      const verdict = button.classList[0];
      button.setAttribute("aria-pressed", label.verdict === verdict);
      button.classList.toggle("wanted", wanted.get(label.id) === verdict);
      button.tabIndex = here ? 0 : -1;
    }
  });
  const left = shown.labels.filter((label) => label.verdict === "open").length;
  at("open").textContent = wanted.size ? `${wanted.size} not saved yet` : `${left} of ${shown.labels.length} left`;
  at("rest").firstChild.textContent = left ? "Confirm the rest, next picture " : "Next picture ";
  tell(shown.labels[current]);
  drawBar();
}

function drawBar() {
  const done = review.finished.filter(Boolean).length;
  at("reviewer").textContent = `by ${review.reviewer}`;
  at("progress").max = review.finished.length;
  at("progress").value = done;
  at("count").textContent = `${done} of ${review.finished.length} finished`;
  at("place").textContent = shown ? `Picture ${shown.number + 1}` : "";
  at("pages").hidden = !shown;
  at("previous").disabled = !shown || shown.number === 0;
  at("next").disabled = !shown || shown.number + 1 === review.finished.length;
  document.title = shown ? `Picture ${shown.number + 1} of ${review.finished.length} · Review` : "Review";
}

function tell(label) {
  if (!label) return at("about").replaceChildren();
  at("about").replaceChildren(
    make("p", { class: "path" }, label.path.join(" › ")),
    make("h3", {}, label.name),
    make("p", {}, label.definition),
    make("p", { class: "cue" }, label.cue));
}

function move(step) {
  const place = current + step;
  if (place < 0 || place >= shown.labels.length) return;
  current = place;
  draw();
  focusLabel();
}

function focusLabel() {
  const element = document.querySelectorAll(".label")[current];
  element?.focus({ preventScroll: true });
  element?.scrollIntoView({ block: "nearest" });
}

// ---- keys and the mouse

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (at("large").open) {
    if (key === " ") { event.preventDefault(); at("large").close(); }
    return;
  }
  if (key === "?") return at("help").showModal();
  // A button that has the focus takes its own keys.
  if (!shown || (event.target.tagName === "BUTTON" && (key === "Enter" || key === " "))) return;
  const action = {
    ArrowDown: () => move(1), j: () => move(1), ArrowUp: () => move(-1), k: () => move(-1),
    ArrowRight: () => go(shown.number + 1), ArrowLeft: () => go(shown.number - 1),
    " ": () => at("large").showModal(), Enter: confirmRest,
  }[key] ?? (key in KEYS && (() => judge(KEYS[key])));
  if (!action) return;
  event.preventDefault();
  // A key that is held down moves; it must not judge picture after picture.
  if (!event.repeat || ["ArrowDown", "ArrowUp", "j", "k"].includes(key)) action();
}

let again = start;

async function start() {
  try {
    review = await ask("/review");
  } catch (error) {
    complain(error.message);
    again = start;
    return;
  }
  const first = review.finished.indexOf(false);
  return first < 0 ? finish() : go(first);
}

addEventListener("keydown", press);
addEventListener("beforeunload", (event) => { if (wanted.size) event.preventDefault(); });
at("previous").addEventListener("click", () => go(shown.number - 1));
at("next").addEventListener("click", () => go(shown.number + 1));
at("rest").addEventListener("click", confirmRest);
at("ask").addEventListener("click", () => at("help").showModal());
at("enlarge").addEventListener("click", () => at("large").showModal());
at("large").addEventListener("click", () => at("large").close());
at("over").addEventListener("click", () => go(0));
at("again").addEventListener("click", () => (wanted.size ? save() : again()));
at("picture").addEventListener("error", () => complain("The picture's file cannot be shown; its labels may be left unsure."));
addEventListener("hashchange", () => location.reload()); // the address of another review at the same port
admit();
start();
