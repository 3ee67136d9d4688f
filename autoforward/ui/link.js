// The link to the server: says who it is, listens, and comes back by itself. What it hears is shown by page.js.
"use strict";

const SILENCE_MS = 30000; // the server says something every 10 s at least
const RETRY_MS = [500, 1000, 2000, 5000];

// Getting in. The secret comes in the fragment, which no server is sent, and does not stay in the address. The tab keeps
// the token, so that it can be loaded again: that storage is this origin's alone, port included, and ends with the tab.

class Refused extends Error {}

let secret = location.hash.slice(1);
const page = crypto.randomUUID(); // should the answer get lost: the same page asks again
if (secret) history.replaceState(null, "", "/");

async function enter() {
  if (secret) {
    const answer = await call("/api/enter", { secret, body: { page } });
    sessionStorage.setItem("token", answer.token);
    secret = "";
  }
  if (!sessionStorage.getItem("token")) throw new Refused("The address is incomplete.");
}

async function request(path, { secret = sessionStorage.getItem("token"), body = null, signal } = {}) {
  const headers = { Authorization: `Bearer ${secret}` };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  });
  if (answer.status === 401) {
    throw new Refused(path === "/api/enter" ? "This address has been used, or belongs to another run." : "That run has ended.");
  }
  return answer;
}

async function call(path, options) {
  const answer = await request(path, options);
  const values = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(values.error || `the page's server answered ${answer.status}`);
  return values;
}

// The stream. An EventSource could send no token but in its address.

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      yield fields.event ? { name: fields.event, data: JSON.parse(fields.data) } : null;
    }
  }
}

async function listen() {
  const ending = new AbortController();
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => ending.abort(), SILENCE_MS);
  };
  try {
    heard();
    const answer = await request("/api/stream", { signal: ending.signal });
    if (!answer.ok) throw new Error(await answer.text());
    for await (const message of messages(answer.body)) {
      heard();
      if (message?.name === "picture") show(message.data);
      if (message?.name === "traffic") count(message.data);
      if (message) say("live", "live");
    }
  } finally {
    clearTimeout(silence);
    ending.abort();
  }
}

async function run() {
  for (let tries = 0; ; tries++) {
    try {
      await enter();
      picture = null;
      await listen();
    } catch (error) {
      if (error instanceof Refused) {
        picture = null;
        say("ended", "not connected");
        clear();
        note(error.message, "Each run of this command prints its own address. Open that one.", [
          ["autoforward ui", "serves this page and opens it"],
        ]);
        return;
      }
    }
    if (picture) tries = 0;
    say("lost", "connection lost, trying again …");
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]));
  }
}
