/** The chat: a dialogue through the server's own endpoint, each answer beside the memories that it attended to. */

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { MemoryDialog } from "../memories/detail.js";
import { empty } from "../parts/states.js";
import { Answer } from "./answer.js";

/** @typedef {{ role: "user" | "assistant", text: string, answer?: Answer, state?: string, problem?: string }} Line */

export class ChatView {
  #root;
  #api;
  #model;
  #detail;
  /** @type {Line[]} */
  #lines = [];
  #previous = null;
  /** @type {AbortController | null} */
  #running = null;

  /** @param {HTMLElement} root @param {import("../app.js").Context} context */
  constructor(root, { api, model }) {
    this.#root = root;
    root.className = "chat";
    root.setAttribute("aria-label", "Chat");
    this.#api = api;
    this.#model = model;
    this.#detail = new MemoryDialog(api, () => {});
  }

  show() {
    this.#draw();
  }

  #draw() {
    render(
      html`<div class="chat-head">
          <h1>Chat</h1>
          <button type="button" ?disabled=${!this.#lines.length} @click=${() => this.#anew()}>New dialogue</button>
        </div>
        <div class="log" role="log" aria-label="Dialogue" aria-busy=${this.#running !== null}>
          ${this.#lines.length ? this.#lines.map((line) => this.#line(line)) : this.#hint()}
        </div>
        <form class="composer" @submit=${(event) => this.#submit(event)}>
          <label class="sr-only" for="say">Message</label>
          <textarea id="say" name="say" rows="1" placeholder="Say something…" required maxlength="20000"
            @keydown=${submitOnEnter} @input=${(event) => grow(event.target)}></textarea>
          ${this.#running
            ? html`<button type="button" @click=${() => this.#running.abort()}>Stop</button>`
            : html`<button type="submit" class="primary">Send</button>`}
        </form>`,
      this.#root,
    );
  }

  #hint() {
    return empty(
      "Tell it something, then ask about it",
      html`What you say here is remembered. Each answer shows the memories that it attended to; point at one of its words
        to see which memory that word looked at.`,
    );
  }

  #line({ role, text, answer, state, problem }) {
    if (role === "user") return html`<p class="turn user"><span class="sr-only">You: </span>${text}</p>`;
    return html`<div class="turn assistant">
      <span class="sr-only">Answer: </span>
      ${answer ? answer.draw() : html`<p class="said">${text}${state === "running" ? html`<span class="pulse" role="status" aria-label="The answer is on its way"></span>` : nothing}</p>`}
      ${state === "cut" ? html`<p class="note">The answer was cut here.</p>` : nothing}
      ${problem ? html`<p class="problem" role="alert">${problem}</p>` : nothing}
    </div>`;
  }

  #anew() {
    this.#running?.abort();
    this.#lines = [];
    this.#previous = null;
    this.#draw();
    this.#root.querySelector("textarea").focus();
  }

  #submit(event) {
    event.preventDefault();
    const field = event.target.elements.say;
    const text = field.value.trim();
    if (!text || this.#running) return;
    field.value = "";
    grow(field);
    this.#ask(text);
  }

  async #ask(text) {
    /** @type {Line} */
    const line = { role: "assistant", text: "", state: "running" };
    this.#lines.push({ role: "user", text }, line);
    const running = new AbortController();
    this.#running = running;
    this.#drawAtEnd();
    const body = {
      model: this.#model,
      input: text,
      previous_response_id: this.#previous,
      stream: true,
      agentmem: { tokens: true },
    };
    try {
      for await (const event of this.#api.stream("responses", body, running.signal)) this.#hear(event, line);
      if (line.state === "running") throw new Error("The answer ended too early.");
    } catch (error) {
      line.state = running.signal.aborted ? "cut" : "failed";
      if (!running.signal.aborted) line.problem = error.message;
    }
    // Another dialogue may have begun meanwhile.
    if (this.#running === running) this.#running = null;
    this.#drawAtEnd();
  }

  #hear(event, line) {
    if (event.type === "response.output_text.delta") {
      line.text += event.delta;
      this.#drawAtEnd();
    } else if (event.type === "response.completed" || event.type === "response.incomplete") {
      const { id, output, agentmem } = event.response;
      const said = output.find((item) => item.type === "message")?.content[0].text ?? "";
      line.answer = new Answer(said, agentmem, () => this.#draw(), (memory) => this.#detail.open(memory));
      line.state = event.type === "response.completed" ? "done" : "cut";
      this.#previous = id;
    } else if (event.type === "response.failed") {
      throw new Error(event.response.error.message);
    }
  }

  /** Draw, and stay at the end unless somebody scrolled up. */
  #drawAtEnd() {
    const page = document.scrollingElement;
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 120;
    this.#draw();
    if (atEnd) page.scrollTop = page.scrollHeight;
  }
}

function submitOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

/** As many lines as the text has, up to a limit that the style sets. */
function grow(field) {
  field.rows = Math.min(6, field.value.split("\n").length);
}
