"use strict";
const TOP = 5, FILES_AT_ONCE = 8, RETRIES = 20;
const results = document.getElementById("results"), status_ = document.getElementById("status");
const drop = document.getElementById("drop"), input = document.getElementById("files");
let limits = {max_request_bytes: 32 * 2 ** 20, max_image_bytes: 32 * 2 ** 20, max_images: FILES_AT_ONCE}, several = false, pending = 0, done = 0;
let turn = Promise.resolve();

// Names come from data: characters that cannot be seen are written out.
const visible = text => String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, c =>
  c === "\u200c" || c === "\u200d" ? c : "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
const percent = share => (100 * share).toFixed(1) + " %";

function add(parent, tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = visible(text);
  parent.append(element);
  return element;
}

function card(file) {
  const item = document.createElement("li"), image = add(item, "img");
  image.alt = "";
  image.src = URL.createObjectURL(file);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => image.remove();  // a format that browsers do not show
  const said = add(item, "div", "said");
  add(said, "h2", "", "…");
  add(said, "p", "name quiet", file.name);
  return {file, item, said};
}

function show(said, row) {
  const title = said.querySelector("h2");
  if (row.error) {
    title.textContent = "Not read";
    add(said, "p", "error", row.error);
    return;
  }
  title.textContent = visible(several ? row.labels.join(", ") || "none of the labels" : row.label);
  if (row.unsure) title.after(Object.assign(document.createElement("span"), {className: "unsure", textContent: "unsure"}));
  const shares = add(said, "ul", "shares");
  for (const [name, share] of Object.entries(row.probabilities).sort((a, b) => b[1] - a[1])) {
    const line = add(shares, "li");
    add(line, "span", several && row.labels.includes(name) ? "class there" : "class", name);
    add(line, "span", "", percent(share));
    const meter = add(line, "meter");
    meter.value = share;
    meter.setAttribute("aria-label", visible(name));
  }
}

async function post(files) {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  for (let attempt = 0; ; attempt++) {
    const answer = await fetch("predict?top=" + TOP, {method: "POST", body: form});
    if (answer.status === 503 && attempt < RETRIES) {
      await new Promise(resolve => setTimeout(resolve, 1000));
      continue;
    }
    const told = await answer.json();
    return told.predictions || files.map(() => ({error: told.error}));
  }
}

async function send(group) {
  let rows;
  try {
    rows = await post(group.map(each => each.file));
  } catch (error) {
    rows = group.map(() => ({error: "The server does not answer; it may have ended."}));
  }
  group.forEach((each, index) => show(each.said, rows[index]));
  done += group.length;
  tell();
}

function tell() {
  status_.textContent = done < pending ? `${done} of ${pending} photos` : `${pending} ${pending === 1 ? "photo" : "photos"}, done`;
}

// One that is too large goes alone: the server refuses the whole request, and the others with it.
const refused = each => each.file.size > limits.max_image_bytes;

function take(files) {
  const waiting = [...files].map(card);
  results.prepend(...waiting.map(each => each.item));
  pending += waiting.length;
  if (waiting.length) tell();
  while (waiting.length) {
    const group = [waiting.shift()];
    let bytes = group[0].file.size;
    while (waiting.length && group.length < Math.min(FILES_AT_ONCE, limits.max_images) && !refused(group[0]) &&
           !refused(waiting[0]) && (bytes += waiting[0].file.size) < limits.max_request_bytes / 2) group.push(waiting.shift());
    turn = turn.then(() => send(group));
  }
}

input.addEventListener("change", () => { take(input.files); input.value = ""; });
document.addEventListener("paste", event => take(event.clipboardData.files));
document.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});

fetch("metadata").then(answer => answer.json()).then(told => {
  limits = told.limits;
  several = told.task === "multilabel";
  const names = told.classes.slice(0, 12).map(visible).join(", ");
  const more = told.classes.length > 12 ? ` and ${told.classes.length - 12} more` : "";
  document.getElementById("about").textContent = `The model knows ${told.classes.length} ${several ? "labels" : "classes"}: ${names}${more}.`;
});
