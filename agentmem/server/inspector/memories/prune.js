/** Pruning in two steps: what would go, and then, when it is agreed to, letting it go. */

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { bytes, count, plural } from "../format.js";
import { announce } from "../parts/announce.js";
import { Dialog } from "../parts/dialog.js";

const SHOWN = 10;
const MIB = 2 ** 20;
const WENT = { delete: "leaves the store", drop_kv: "loses its KV, keeps its text", drop_stream: "stream is dropped" };

export class PruneDialog {
  #api;
  #pruned;
  #dialog = new Dialog("prune");
  #limits = null;
  #report = null;
  #texts = new Map();
  #problem = "";
  #isBusy = false;

  /** @param {import("../api.js").Api} api @param {() => void} pruned called when something went */
  constructor(api, pruned) {
    this.#api = api;
    this.#pruned = pruned;
  }

  open() {
    this.#report = null;
    this.#problem = "";
    this.#dialog.show("Prune", this.#form());
  }

  #draw() {
    this.#dialog.draw(this.#report ? this.#preview() : this.#form());
  }

  #form() {
    return html`<form @submit=${(event) => this.#rehearse(event)}>
      <div class="dialog-body">
        <p class="muted">Brings these memories within limits, least used first. Pinned ones stay. Nothing goes before you
          have seen what would.</p>
        <label class="field">Keep at most so many memories
          <input name="max_memories" type="number" min="0" max="2147483647" step="1" autofocus />
        </label>
        <label class="field"><span>Keep at most so much KV, in MiB <span class="muted">(texts stay)</span></span>
          <input name="max_mib" type="number" min="0" step="any" />
        </label>
        <label class="field">Forget what was neither written nor read for so many days
          <input name="days" type="number" min="1" max="999999" step="1" />
        </label>
        <p class="problem" role="alert">${this.#problem}</p>
      </div>
      <footer class="dialog-foot">
        <button type="button" @click=${() => this.#dialog.close()}>Cancel</button>
        <button type="submit" class="primary" ?disabled=${this.#isBusy}>Preview</button>
      </footer>
    </form>`;
  }

  async #rehearse(event) {
    event.preventDefault();
    const form = new FormData(event.target);
    const limits = {};
    if (form.get("max_memories") !== "") limits.max_memories = Number(form.get("max_memories"));
    if (form.get("max_mib") !== "") limits.max_bytes = Math.round(Number(form.get("max_mib")) * MIB);
    if (form.get("days") !== "") limits.unused_for = `${form.get("days")}d`;
    if (!Object.keys(limits).length) {
      this.#problem = "Give at least one limit.";
      this.#draw();
      return;
    }
    this.#limits = limits;
    await this.#run(async () => {
      const report = await this.#prune(true);
      const memories = report.pruned.filter(({ action }) => action !== "drop_stream");
      const texts = await Promise.all(memories.map(({ id }) => this.#api.get(`memories/${encodeURIComponent(id)}`)));
      this.#texts = new Map(texts.map(({ id, text }) => [id, text]));
      this.#report = report;
    });
  }

  #prune(dryRun) {
    return this.#api.send("POST", "memories/prune", { ...this.#limits, dry_run: dryRun, listed: SHOWN });
  }

  async #run(work) {
    this.#isBusy = true;
    this.#problem = "";
    this.#draw();
    try {
      await work();
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isBusy = false;
    if (this.#dialog.isOpen) this.#draw();
  }

  #preview() {
    const { total, pruned, kept, freed_kv_bytes: freed } = this.#report;
    if (!total) {
      return html`<div class="dialog-body"><p>Everything is within these limits: nothing would go.</p></div>
        <footer class="dialog-foot"><button type="button" @click=${() => this.open()}>Other limits</button></footer>`;
    }
    return html`<div class="dialog-body">
        <p class="prune-sum">Of <strong>${plural(total, "memory", "memories")}</strong>, text or KV would go;
          ${count(kept)} stay. ${freed ? `${bytes(freed)} of KV would be freed.` : nothing}</p>
        <ol class="pruned">
          ${pruned.map(({ id, action, reason }) => html`<li>
            <span class="pruned-text">${this.#texts.get(id) ?? id}</span>
            <span class="muted">${WENT[action]}: ${reason}</span>
          </li>`)}
        </ol>
        ${total > pruned.length ? html`<p class="muted">and ${count(total - pruned.length)} more.</p>` : nothing}
        <p class="problem" role="alert">${this.#problem}</p>
      </div>
      <footer class="dialog-foot">
        <button type="button" @click=${() => this.open()}>Other limits</button>
        <button type="button" class="danger" ?disabled=${this.#isBusy} @click=${() => this.#carryOut()}>
          ${this.#isBusy ? "Pruning…" : `Prune ${count(total)}`}</button>
      </footer>`;
  }

  #carryOut() {
    return this.#run(async () => {
      const { total } = await this.#prune(false);
      this.#dialog.close();
      announce(`Pruned ${count(total)}.`);
      this.#pruned();
    });
  }
}
