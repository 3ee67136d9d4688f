// What is to be seen, and what can be done with it. Text of containers goes into textContent and nowhere else.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const groups = new Map(); // container id -> {element, rows: Map of key -> Row}
const total = { traffic: new Traffic(), plot: new Plot($("#total-plot")) };
let picture = null;

function say(state, words) {
  const live = $("#live");
  if (live.dataset.state === state) return;
  live.dataset.state = document.body.dataset.state = state;
  live.textContent = words;
}

// What is there, and what to do where nothing is.

function show(now) {
  picture = now;
  const focused = document.activeElement?.closest(".forward")?.dataset.key;
  const wanted = new Map();
  const groupOf = (of) => {
    const key = of.containerId ?? of.target ?? "";
    if (!wanted.has(key)) wanted.set(key, { ...of, session: null, rows: [] });
    return wanted.get(key);
  };
  for (const session of now.sessions) groupOf(session).session = session;
  for (const row of now.rows) groupOf(row).rows.push(row);
  for (const [key, group] of groups) {
    if (!wanted.has(key)) {
      group.element.remove();
      groups.delete(key);
    }
  }
  const byName = [...wanted].sort(([, a], [, b]) => (a.containerName ?? "").localeCompare(b.containerName ?? ""));
  place($("#groups"), byName.map(([key, of]) => showGroup(key, of)));
  if (focused !== undefined) keepFocus(focused);

  const up = now.rows.filter((row) => row.status === "active").length;
  document.title = up ? `(${up}) autoforward` : "autoforward";
  $("#count").textContent = up === 1 ? "1 port is up" : `${up} ports are up`;
  $("#others").textContent = now.rows.length > up ? `, ${now.rows.length - up} not` : "";
  $("#total").hidden = !now.rows.length;
  tick();
  explain(now);
}

function explain(now) {
  const start = [
    ["devup --auto-forward --workspace-folder .", "starts the dev container of a folder and forwards its ports"],
    ["autoforward attach", "forwards the running dev container of this folder"],
    ["autoforward attach NAME", "forwards any running container"],
  ];
  if (!now.running && now.restorable) {
    note("The supervisor is not running.", "It ended while it had sessions. This command brings them back on the same ports:", [
      ["autoforward list", "starts it again and lists the forwards"],
    ]);
  } else if (!now.running) {
    note("Nothing is forwarded: the supervisor is not running.", "Each of these commands starts it:", start);
  } else if (!now.sessions.length && !now.rows.length) {
    note("Nothing is forwarded yet.", "Choose a container in a terminal:", start);
  } else {
    $("#note").hidden = true;
  }
}

function note(title, words, commands) {
  const section = $("#note");
  $("h2", section).textContent = title;
  $("p", section).textContent = words;
  $("dl", section).replaceChildren(
    ...commands.flatMap(([command, meaning]) => {
      const code = document.createElement("code");
      code.textContent = command;
      const term = document.createElement("dt");
      term.append(code);
      const description = document.createElement("dd");
      description.textContent = meaning;
      return [term, description];
    }),
  );
  section.hidden = false;
}

function clear() {
  groups.clear();
  $("#groups").replaceChildren();
  $("#total").hidden = true;
  document.title = "autoforward";
}

// Puts elements in this order, and moves only those that are elsewhere: what has the focus keeps it.
function place(parent, elements) {
  elements.forEach((element, at) => {
    if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
  });
}

function showGroup(key, { session, rows, ...of }) {
  let group = groups.get(key);
  if (!group) {
    group = { element: $("#group").content.firstElementChild.cloneNode(true), rows: new Map() };
    groups.set(key, group);
  }
  const { element } = group;
  const troubled = session && session.state !== "watching";
  const problem = [troubled && session.problem, session?.configProblem].filter(Boolean).join("; ");
  $("h2 bdi", element).textContent = of.containerName ?? "a container";
  $(".service", element).textContent = rows.find((row) => row.service)?.service ?? "";
  $(".folder", element).textContent = of.workspaceFolder ?? "";
  $(".state", element).textContent = troubled ? session.state : "";
  $(".problem", element).textContent = problem;
  $(".problem", element).hidden = !problem;
  $(".nothing", element).hidden = Boolean(rows.length || troubled);
  const keys = new Set(rows.map((row) => row.key));
  for (const [rowKey, row] of group.rows) {
    if (!keys.has(rowKey)) {
      row.element.remove();
      group.rows.delete(rowKey);
    }
  }
  place(
    $("ul", element),
    rows.map((values) => {
      if (!group.rows.has(values.key)) group.rows.set(values.key, new Row(values.key));
      const row = group.rows.get(values.key);
      row.show(values);
      return row.element;
    }),
  );
  return element;
}

// The row that had the focus is gone: go on where the keyboard is, not at the top of the page.
function keepFocus(key) {
  if (document.activeElement && document.activeElement !== document.body) return;
  if ([...groups.values()].some((group) => group.rows.has(key))) return;
  ($("#groups .forward .stop:not([hidden])") ?? $("#groups h2"))?.focus();
}

// For rows that say no reason of their own.
const MEANINGS = {
  waiting: "No server listens on this port yet: connections are refused until one does.",
  reconnecting: "The container is out of reach: connections wait until it is back.",
};

class Row {
  constructor(key) {
    this.element = $("#forward").content.firstElementChild.cloneNode(true);
    this.element.dataset.key = key;
    this.traffic = new Traffic();
    this.plot = new Plot($(".plot", this.element));
    this.counters = [0, 0, 0, 0, 0];
    $(".copy", this.element).addEventListener("click", () => this.copy());
    $(".stop", this.element).addEventListener("click", () => this.stop());
  }

  show(row) {
    this.values = row;
    const { element } = this;
    const put = (name, text) => {
      $(name, element).textContent = text;
      $(name, element).hidden = !text;
    };
    // Looked at again although the server has: nothing but http and https may ever become a link.
    const url = /^https?:\/\//.test(row.url ?? "") ? row.url : null;
    this.address = url ?? (row.localPort ? `localhost:${row.localPort}` : "");
    const link = $(".local", element);
    link.hidden = !url;
    if (url) link.href = url;
    link.textContent = url ? url.replace(/^http:\/\//, "") : "";
    const own = [null, "127.0.0.1", "::1", "0.0.0.0", "::"].includes(row.containerHost);
    const udp = row.transport === "udp" ? "/udp" : "";
    const remote = row.port === null ? (row.source === "declared" ? "asked for" : "other ports") : `${own ? "" : `${row.containerHost}:`}${row.port}${udp}`;
    put(".plain", url ? "" : this.address ? `${this.address}${udp}` : `port ${remote}`);
    put(".remote", this.address && row.port !== row.localPort ? `→ ${remote}` : "");
    put(".label", row.label ?? "");
    put(".process", row.process ?? "");
    put(".word", row.status ?? "");
    put(".reason", row.reason ?? MEANINGS[row.status] ?? "");
    element.dataset.status = row.status ?? "";
    element.classList.toggle("exposed", Boolean(row.id && row.hostIp && !/^(127\.|::1$)/.test(row.hostIp)));
    element.classList.toggle("bare", !row.label && !row.process);
    const name = this.address || `port ${remote}`;
    $(".copy", element).hidden = !this.address;
    $(".copy", element).setAttribute("aria-label", `Copy ${this.address}`);
    $(".stop", element).hidden = !row.id;
    $(".stop", element).setAttribute("aria-label", `Stop ${name}`);
    this.count(row.counters);
  }

  count(counters) {
    this.counters = counters;
    const [active, all, refused] = counters;
    const words = [all ? `${active} of ${all} open` : "", refused ? `${refused} refused` : ""];
    $(".connections", this.element).textContent = words.filter(Boolean).join(", ");
  }

  tick(now) {
    const [, , , bytesIn, bytesOut] = this.counters;
    this.traffic.sample(bytesIn, bytesOut, now);
    this.plot.draw(this.traffic);
    const { rateIn, rateOut } = this.traffic;
    const rate = rateIn + rateOut;
    const all = bytesIn + bytesOut;
    $(".rate", this.element).textContent = rate >= 1 ? `${size(rate)}/s` : all ? size(all) : "";
    this.element.classList.toggle("busy", rate >= 1);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.address);
      announce(`Copied ${this.address}`);
    } catch {
      announce(`Your browser does not let this page copy. The address is ${this.address}`);
    }
  }

  async stop() {
    const button = $(".stop", this.element);
    button.setAttribute("aria-disabled", "true");
    try {
      await call("/api/stop", { body: { id: this.values.id } });
      announce(`Stopped ${this.address}. It is forwarded again when its server restarts.`);
    } catch (error) {
      announce(`Not stopped: ${error.message}`);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }
}

function allRows() {
  return [...groups.values()].flatMap((group) => [...group.rows.values()]);
}

function count(moved) {
  for (const row of allRows()) if (moved[row.values.key]) row.count(moved[row.values.key]);
}

function tick() {
  const now = performance.now();
  if (total.at && now - total.at < 900) return;
  total.at = now;
  const rows = allRows();
  for (const row of rows) row.tick(now);
  const sum = (name) => rows.reduce((all, row) => all + row.traffic[name], 0);
  total.traffic.push(sum("rateIn"), sum("rateOut"));
  total.plot.draw(total.traffic);
  $("#total-in").textContent = `${size(total.traffic.rateIn)}/s`;
  $("#total-out").textContent = `${size(total.traffic.rateOut)}/s`;
}

let saying;
function announce(words) {
  $("#said").textContent = words;
  clearTimeout(saying);
  saying = setTimeout(() => { $("#said").textContent = ""; }, 6000);
}

setInterval(tick, 1000);
// An address that was opened in this very tab (a new run's, after the old one ended).
addEventListener("hashchange", () => location.reload());
run();
