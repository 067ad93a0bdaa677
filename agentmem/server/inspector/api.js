/** The server's API, as the page uses it: requests in the name of one user, errors with their own words. */

/** What the server, or the way to it, refused. `status` is 0 where no answer came. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Header values are bytes: a name of any script travels as UTF-8. @param {string} text */
const headerText = (text) => String.fromCharCode(...new TextEncoder().encode(text));

export class Api {
  #session;
  #onRefused;

  /**
   * @param {import("./session.js").Session} session whose key and scope are sent
   * @param {() => void} onRefused called when the server does not take the key (any more)
   */
  constructor(session, onRefused) {
    this.#session = session;
    this.#onRefused = onRefused;
  }

  /**
   * @param {string} path below `/v1/`
   * @param {Record<string, unknown>} [params] left out where they are null, undefined or ""
   * @param {AbortSignal} [signal]
   */
  async get(path, params = {}, signal) {
    const given = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
    return (await this.#fetch("GET", given.length ? `${path}?${query}` : path, undefined, signal)).json();
  }

  /** @param {"POST" | "PUT" | "PATCH" | "DELETE"} method @param {string} path @param {unknown} [body] */
  async send(method, path, body, signal) {
    return (await this.#fetch(method, path, body, signal)).json();
  }

  /**
   * Server-sent events of an answer, each as its parsed object.
   * @param {string} path @param {unknown} body @param {AbortSignal} signal
   */
  async *stream(path, body, signal) {
    const response = await this.#fetch("POST", path, body, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const events = text.split("\n\n");
      text = events.pop() ?? "";
      for (const event of events) {
        const data = event.split("\n").find((line) => line.startsWith("data: "));
        if (data) yield JSON.parse(data.slice(6));
      }
    }
  }

  async #fetch(method, path, body, signal) {
    const headers = new Headers();
    const { key, user, agent } = this.#session;
    if (key) headers.set("Authorization", `Bearer ${headerText(key)}`);
    if (user) headers.set("X-Agentmem-User", headerText(user));
    if (agent) headers.set("X-Agentmem-Agent", headerText(agent));
    if (body !== undefined) headers.set("Content-Type", "application/json");
    let response;
    try {
      response = await fetch(`v1/${path}`, { method, headers, body: JSON.stringify(body), signal, credentials: "omit" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "unreachable", "The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    const error = new ApiError(
      response.status,
      told?.error?.code ?? "unknown",
      told?.error?.message ?? `the server answered ${response.status}`,
    );
    if (response.status === 401) this.#onRefused();
    throw error;
  }
}
