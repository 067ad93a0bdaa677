/** One memory in full: its text to correct, what is known of it, when it was read, and what happened to it. */

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { bytes, count, date, percent, plural } from "../format.js";
import { announce } from "../parts/announce.js";
import { confirm, Dialog } from "../parts/dialog.js";
import { failed, loading } from "../parts/states.js";

const HAPPENED = {
  added: "written",
  updated: "changed",
  pinned: "pinned",
  unpinned: "unpinned",
  kv_attached: "KV encoded",
  kv_dropped: "KV dropped, text kept",
  deleted: "forgotten",
  evicted: "evicted",
};

/**
 * Ask, then forget a memory. Resolves to whether it is gone.
 * @param {import("../api.js").Api} api
 * @param {{ id: string, text: string }} memory
 */
export async function forget(api, memory) {
  const agreed = await confirm({
    title: "Forget this memory?",
    text: html`<blockquote>${memory.text}</blockquote>
      <p>Nothing of it remains in any table, index or file. This cannot be undone.</p>`,
    action: "Forget it",
  });
  if (agreed) {
    await api.send("DELETE", `memories/${encodeURIComponent(memory.id)}`);
    announce("Forgotten.");
  }
  return agreed;
}

export class MemoryDialog {
  #api;
  #changed;
  #dialog = new Dialog("detail");
  #memory = null;
  #history = [];
  #hit = null;
  #problem = "";

  /** @param {import("../api.js").Api} api @param {() => void} changed called when something of a memory has changed */
  constructor(api, changed) {
    this.#api = api;
    this.#changed = changed;
  }

  /** @param {string} id @param {object | null} [hit] the search result that it was found as */
  async open(id, hit = null) {
    this.#hit = hit;
    this.#problem = "";
    this.#dialog.show("Memory", loading("the memory"));
    await this.#load(id);
  }

  get #path() {
    return `memories/${encodeURIComponent(this.#memory.id)}`;
  }

  async #load(id) {
    const path = `memories/${encodeURIComponent(id)}`;
    try {
      const [memory, history] = await Promise.all([this.#api.get(path), this.#api.get(`${path}/history`)]);
      this.#memory = memory;
      this.#history = history.data;
      this.#draw();
    } catch (error) {
      this.#dialog.draw(
        error.status === 404
          ? html`<div class="state"><p class="state-title">This memory is gone</p><p>It was forgotten or evicted.</p></div>`
          : failed(error, () => this.open(id, this.#hit)),
      );
    }
  }

  /** Do something with the memory, then show it as it is. @param {() => Promise<unknown>} work */
  async #change(work) {
    this.#problem = "";
    try {
      await work();
      await this.#load(this.#memory.id);
      this.#changed();
    } catch (error) {
      this.#problem = error.message;
      this.#draw();
    }
  }

  #save(event) {
    event.preventDefault();
    const form = new FormData(event.target);
    const text = form.get("text");
    const tags = form.get("tags").split(",").map((tag) => tag.trim()).filter(Boolean);
    const changes = { tags };
    if (text !== this.#memory.text) changes.text = text;
    this.#change(async () => {
      await this.#api.send("PATCH", this.#path, changes);
      announce("Saved.");
    });
  }

  #pin() {
    const pinned = !this.#memory.pinned;
    this.#change(() => this.#api.send("PUT", `${this.#path}/pin`, { pinned }));
  }

  async #forget() {
    try {
      if (!(await forget(this.#api, this.#memory))) return;
      this.#dialog.close();
      this.#changed();
    } catch (error) {
      this.#problem = error.message;
      this.#draw();
    }
  }

  #draw() {
    const memory = this.#memory;
    this.#dialog.draw(html`
      <form class="dialog-body" @submit=${(event) => this.#save(event)}>
        <label class="field">Text
          <textarea name="text" rows="3" required .defaultValue=${memory.text}></textarea>
        </label>
        <label class="field"><span>Tags <span class="muted">(separated by commas)</span></span>
          <input name="tags" .defaultValue=${memory.tags.join(", ")} autocomplete="off" />
        </label>
        <p class="problem" role="alert">${this.#problem}</p>
        <div class="detail-actions">
          <button type="submit" class="primary">Save</button>
          <button type="button" aria-pressed=${memory.pinned} @click=${() => this.#pin()}>
            ${memory.pinned ? "Unpin" : "Pin"}</button>
          <button type="button" class="danger" @click=${() => this.#forget()}>Forget…</button>
        </div>
      </form>
      <div class="dialog-body">
        ${this.#hit ? found(this.#hit) : nothing}
        ${facts(memory)}
        ${reads(memory)}
        <h3>History</h3>
        <ol class="history">
          ${this.#history.map((event) => html`<li>
            <time datetime=${event.at}>${date(event.at)}</time>
            <span>${HAPPENED[event.action]}${event.reason ? html`<span class="muted">: ${event.reason}</span>` : nothing}</span>
          </li>`)}
        </ol>
      </div>`);
  }
}

const fact = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

const facts = (memory) => html`<dl class="facts">
  ${fact("Role", memory.role)}
  ${fact("Written", date(memory.created_at))}
  ${fact("Uses", count(memory.uses))}
  ${fact("Last used", memory.last_used ? date(memory.last_used) : "never")}
  ${fact("Frequency now", memory.frequency.toFixed(2))}
  ${fact("Tier", memory.tier)}
  ${fact("KV", memory.kv_bytes ? bytes(memory.kv_bytes) : "none")}
  ${fact("Tokens", count(memory.n_tokens))}
  ${memory.expires_at ? fact("Expires", date(memory.expires_at)) : nothing}
  ${memory.scope.session ? fact("Dialogue", memory.scope.session) : nothing}
  ${fact("Id", html`<code>${memory.id}</code>`)}
</dl>`;

/** Why a search found it. */
function found({ score, explain }) {
  const leg = (value, z) => (value === null ? "not among its best" : `${value.toFixed(3)} (z ${z.toFixed(2)})`);
  return html`<h3>Why it was found</h3>
    <dl class="facts">
      ${fact("Score", score.toFixed(3))}
      ${fact("By words (BM25)", leg(explain.lexical, explain.lexical_z))}
      ${fact("By meaning (cosine)", leg(explain.dense, explain.dense_z))}
    </dl>`;
}

/** Its newest reads, each with its share, newest first. */
function reads({ reads, uses }) {
  if (!reads.length) return nothing;
  const most = Math.max(...reads.map((read) => read.attention));
  return html`<h3>Attention share over time</h3>
    <p class="muted">${reads.length < uses ? `The last ${reads.length} of ${plural(uses, "read", "reads")}.` : plural(uses, "read", "reads")}</p>
    <ol class="reads">
      ${reads.toReversed().map((read) => html`<li>
        <time datetime=${read.at}>${date(read.at)}</time>
        <svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
          <rect class="bar-all" width="100" height="8" rx="2" />
          <rect class="bar-share" width=${((100 * read.attention) / most).toFixed(2)} height="8" rx="2" />
        </svg>
        <span class="share-number">${percent(read.attention)}</span>
      </li>`)}
    </ol>`;
}
