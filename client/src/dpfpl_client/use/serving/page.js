"use strict";
// The token, where one is needed, comes in the address behind "#": a browser does not send that part.
const token = decodeURIComponent(location.hash.slice(1));
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const drop = document.getElementById("drop");
const file = document.getElementById("file");
const preview = document.getElementById("preview");
const result = document.getElementById("result");
const asking = document.getElementById("asking");
const question = document.getElementById("question");
let task = "classify";
let chosen = null;

function say(text, bad = false) {
  const line = document.createElement("p");
  line.textContent = text;
  line.className = bad ? "bad" : "";
  result.replaceChildren(line);
}

function show(predictions) {
  const table = document.createElement("table");
  for (const { name, probability } of predictions) {
    const row = table.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    const bar = document.createElement("progress");
    bar.value = probability;
    bar.setAttribute("aria-label", name);
    const share = row.insertCell();
    share.className = "share";
    share.append(bar);
    const number = row.insertCell();
    number.className = "number";
    number.textContent = `${(100 * probability).toFixed(1)} %`;
  }
  result.replaceChildren(table);
}

function percent(value) {
  return value === null ? "–" : `${(100 * value).toFixed(1)} %`;
}

function showScores(scores) {
  const table = document.getElementById("scores");
  table.hidden = scores.length === 0;
  for (const { candidate, value, interval } of scores) {
    const row = table.tBodies[0].insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = candidate;
    row.append(head);
    for (const text of [percent(value), interval.map(percent).join(" – ")]) {
      const cell = row.insertCell();
      cell.className = "number";
      cell.textContent = text;
    }
  }
}

function showAbout({ site, experiment, version, learned, finished, model, usual_mix }) {
  const line = document.getElementById("about");
  line.hidden = false;
  const mix = usual_mix === null ? "" : ` Own mix: ${percent(usual_mix)} of the images are expected as this site usually has them.`;
  const state = finished ? "" : " (half-finished)";
  line.textContent = `Site ${site}, experiment ${experiment}${state}, version ${version}, learned ${learned}, model ${model}.${mix}`;
}

async function classify(image) {
  chosen = image;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.alt = image.name;
  preview.hidden = false;
  if (task === "vqa" && !question.value.trim()) {
    say("Write a question about the image, then Ask.");
    question.focus();
    return;
  }
  say(task === "classify" ? "Classifying …" : "Answering …");
  try {
    const type = image.type.startsWith("image/") ? image.type : "application/octet-stream";
    const asked = task === "classify" ? "" : `&question=${encodeURIComponent(question.value)}`;
    const answer = await fetch(`/v1/predict?top=5${asked}`, { method: "POST", body: image, headers: { ...headers, "Content-Type": type } });
    const content = await answer.json();
    if (answer.ok) show(content.predictions);
    else say(`${content.message ?? "The server refused the request."} ${content.advice ?? ""}`, true);
  } catch {
    say("The server does not answer, or closed the connection.", true);
  }
}

file.addEventListener("change", () => { if (file.files.length) classify(file.files[0]); });
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
});
asking.addEventListener("submit", (event) => {
  event.preventDefault();
  if (chosen) classify(chosen);
  else say("Choose an image first.");
});
preview.addEventListener("error", () => { preview.hidden = true; });

fetch("/v1/prompt", { headers })
  .then(async (answer) => {
    const content = await answer.json();
    if (!answer.ok) {
      say(content.message, true);
      return;
    }
    task = content.task;
    const inWords = task !== "classify";
    asking.hidden = !inWords;
    question.placeholder = content.question;
    if (inWords) document.title = document.getElementById("title").textContent = task === "vqa" ? "Ask about an image" : "Describe an image";
    showScores(content.scores);
    if (content.about) showAbout(content.about);
    const what = inWords ? "" : `Classes: ${content.classes.join(", ")}. `;
    document.getElementById("classes").textContent = `${what}Largest file: ${content.max_bytes / 1e6} MB.`;
  })
  .catch(() => say("The server does not answer.", true));
