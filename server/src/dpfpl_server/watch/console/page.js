"use strict";
// The token, where one is needed, comes in the address behind "#": a browser does not send that part. EventSource cannot
// show a token, so the stream of server-sent events is read with fetch.
const token = decodeURIComponent(location.hash.slice(1));
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const at = (id) => document.getElementById(id);
const TROUBLE = new Set(["FAILED", "HANGING", "CUT_OFF", "WAITING_FOR_SITES", "STOPPED"]);
let current = null;

function element(kind, text, css = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (css) made.className = css;
  return made;
}

function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

// Rounded up, so that never less is shown than was computed.
function epsilon(value) {
  if (typeof value !== "number") return value === "infinite" ? "∞" : String(value);
  return (Math.ceil(value * 100 - 1e-9) / 100).toFixed(2);
}

function fill(table, rows) {
  at(table).tBodies[0].replaceChildren(...rows);
}

function row(name, cells) {
  const made = document.createElement("tr");
  const head = element("th", name);
  head.scope = "row";
  made.append(head, ...cells);
  return made;
}

function share(spent, planned, label) {
  const cell = element("td", "", "share");
  if (typeof spent === "number" && typeof planned === "number" && planned > 0) {
    const bar = document.createElement("progress");
    bar.max = planned;
    bar.value = Math.min(spent, planned);
    bar.setAttribute("aria-label", label);
    cell.append(bar);
  }
  cell.append(`${epsilon(spent)} of ${epsilon(planned)}`);
  return cell;
}

function showSites(state) {
  const planned = state.privacy.epsilons[0].planned;
  fill("sites", state.sites.map((site) => row(site.name, [
    element("td", site.connection, site.connection === "offline" ? "offline" : ""),
    element("td", site.doing || "–"),
    element("td", site.used, "number"),
    element("td", site.dropped, "number"),
    element("td", percent(site.accuracy), "number"),
    share(site.epsilon_at_most, planned, `Epsilon of ${site.name}`),
  ])));
}

function showPrivacy(state) {
  fill("privacy", state.privacy.epsilons.map((entry) => row(entry.who, [
    element("td", epsilon(entry.spent), "number"),
    element("td", epsilon(entry.planned), "number"),
  ])));
  at("unit").textContent = `Delta ${state.privacy.delta}; what is protected: ${state.privacy.unit}. Smaller is stronger.`;
}

function showChart(chart) {
  if (!chart.svg) {
    at("chart").replaceChildren(element("p", "Sites report no exact accuracies. Scores come with the result.", "quiet"));
    at("legend").replaceChildren();
    return;
  }
  const drawing = new DOMParser().parseFromString(chart.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), "image/svg+xml");
  at("chart").replaceChildren(document.importNode(drawing.documentElement, true));
  at("legend").replaceChildren(...chart.legend.map((line) => {
    const item = document.createElement("li");
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("class", "swatch");
    swatch.setAttribute("viewBox", "0 0 36 10");
    swatch.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", `line style${line.style}`);
    path.setAttribute("d", "M1 5H35");
    swatch.append(path);
    item.append(swatch, `${line.label}: ${percent(line.last)}`);
    return item;
  }));
}

// A value that the noise hides is a dash; its interval says so.
function showScores(scores) {
  at("scores").hidden = scores.length === 0;
  fill("scores", scores.map((score) => row(score.name, [
    element("td", percent(score.value), "number"),
    element("td", score.interval.map(percent).join(" – "), "number"),
  ])));
}

function showDrops(drops) {
  at("no-drops").hidden = drops.length > 0;
  at("drops").hidden = drops.length === 0;
  fill("drops", drops.map((drop) => {
    const made = document.createElement("tr");
    made.append(element("td", drop.round, "number"), element("td", drop.attempt, "number"), element("td", drop.site), element("td", drop.code), element("td", drop.reason));
    return made;
  }));
}

function show(state) {
  document.title = `${state.name}: ${state.round}/${state.rounds} – DP-FPL console`;
  at("name").textContent = state.name;
  at("state").textContent = state.state.replaceAll("_", " ").toLowerCase();
  at("state").className = `badge ${TROUBLE.has(state.state) ? "trouble" : state.state === "FINISHED" ? "done" : ""}`;
  at("meaning").textContent = state.meaning;
  at("problem").hidden = !state.problem;
  at("problem").textContent = state.problem ? `${state.problem.code}: ${state.problem.message} ${state.problem.advice}` : "";
  at("server").hidden = state.server.length === 0;
  at("server").textContent = state.server.length ? `Server: ${state.server.join("; ")}` : "";
  at("progress").max = state.rounds;
  at("progress").value = state.round;
  at("round").textContent = `Round ${state.round} of ${state.rounds} done.`;
  at("activity").textContent = state.activity;
  at("nothing-found").hidden = !state.nothing_found;
  at("nothing-found").textContent = state.nothing_found;
  at("waiting").hidden = state.waiting_for.length === 0;
  const stuck = state.state === "WAITING_FOR_SITES";
  at("waiting").className = stuck ? "waiting" : "quiet";
  at("waiting").textContent = `${stuck ? "Waiting for" : "No reply yet"}: ${state.waiting_for.join(", ")}`;
  showSites(state);
  showPrivacy(state);
  showChart(state.chart);
  showScores(state.scores);
  showDrops(state.drops);
  const log = at("log");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  log.textContent = state.log.join("\n") || "The server has written no log yet.";
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function link(text, off = false) {
  at("link").textContent = text;
  at("link").className = off ? "off" : "";
}

function handle(message) {
  const event = /^event: (.*)$/m.exec(message);
  const data = /^data: (.*)$/m.exec(message);
  if (!data) return;
  const content = JSON.parse(data[1]);
  if (event[1] === "state") { show(content); link("live"); } else link(`${content.code}: ${content.message}`, true);
}

async function follow(name, stop) {
  while (!stop.signal.aborted) {
    try {
      const answer = await fetch(`/api/runs/${encodeURIComponent(name)}/events`, { headers, signal: stop.signal });
      if (!answer.ok) throw new Error((await answer.json()).message);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let kept = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the server closed the connection");
        kept += value;
        const messages = kept.split("\n\n");
        kept = messages.pop();
        messages.forEach(handle);
      }
    } catch (error) {
      if (stop.signal.aborted) return;
      link(`not connected (${error.message}); trying again`, true);
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  }
}

function choose(name) {
  current?.abort();
  current = new AbortController();
  at("runs").value = name;
  follow(name, current);
}

async function list() {
  try {
    const answer = await fetch("/api/runs", { headers });
    const names = await answer.json();
    if (!answer.ok) throw new Error(names.message);
    const chosen = at("runs").value;
    at("runs").replaceChildren(...names.map((name) => element("option", name)));
    if (names.includes(chosen)) at("runs").value = chosen;
    else if (names.length) choose(names[0]);
    else link("no experiment was run yet");
  } catch (error) {
    link(`not connected (${error.message})`, true);
  }
}

at("runs").addEventListener("change", () => choose(at("runs").value));
list();
setInterval(list, 10000);
