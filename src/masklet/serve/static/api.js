// Requests to the server. Errors carry what it says is wrong.

export class ApiError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

const TOKEN = "masklet-token";
let token = sessionStorage.getItem(TOKEN) || "";
export function setToken(value) { token = value; sessionStorage.setItem(TOKEN, value); }

async function send(method, path, body, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let content = body;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    content = JSON.stringify(body);
  }
  for (let attempt = 0; ; attempt++) {
    let reply;
    try {
      reply = await fetch(path, { method, headers, body: content, signal: options.signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. Is it still running? Nothing that was done before is lost.");
    }
    if (reply.ok) return reply;
    if (reply.status === 503 && attempt < 3 && !options.once) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(reply.headers.get("Retry-After") || 1)));
      continue;
    }
    let detail = `The server answered with status ${reply.status}.`;
    try { detail = (await reply.json()).detail || detail; } catch { /* no JSON */ }
    throw new ApiError(reply.status, detail);
  }
}

const json = async (reply) => (reply.status === 204 ? null : reply.json());
export const get = async (path) => json(await send("GET", path));
export const post = async (path, body = {}, options) => json(await send("POST", path, body, options));
export const patch = async (path, body) => json(await send("PATCH", path, body));
export const remove = async (path) => json(await send("DELETE", path));
export const blob = async (path, options) => (await send("GET", path, undefined, options)).blob();

export async function download(path, name) {
  const reply = await send("GET", path);
  const given = /filename\*?=(?:utf-8'')?"?([^";]+)"?/i.exec(reply.headers.get("Content-Disposition") || "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await reply.blob());
  link.download = given ? decodeURIComponent(given[1]) : name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return link.download;
}

// Server-sent events. EventSource cannot send a token, so the stream is read here.
export async function* events(path, signal) {
  const reply = await send("GET", path, undefined, { signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const fields = {};
      for (const line of text.slice(0, end).split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
      }
      text = text.slice(end + 2);
      if (fields.data) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
