/** The memories: search, filters, the table, and what can be done with a memory. */

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { count, plural } from "../format.js";
import { announce } from "../parts/announce.js";
import { filterIcon, searchIcon } from "../parts/icons.js";
import { empty, failed, loading } from "../parts/states.js";
import { forget, MemoryDialog } from "./detail.js";
import { chips, filterPanel } from "./filters.js";
import { PruneDialog } from "./prune.js";
import { NO_FILTERS, Source } from "./source.js";
import { memoryTable } from "./table.js";

const SORTS = {
  "-created_at": "newest first",
  created_at: "oldest first",
  "-last_used": "used last",
  "-uses": "most uses",
  uses: "fewest uses",
  "-attention": "most attention",
  attention: "least attention",
  "-frequency": "highest frequency",
  frequency: "lowest frequency (goes first)",
  "-kv_bytes": "most KV",
  kv_bytes: "least KV",
  "-n_tokens": "longest",
  n_tokens: "shortest",
};

export class MemoriesView {
  #root;
  #api;
  #source;
  #detail;
  #prune;
  #showsFilters = false;
  #actions;

  /** @param {HTMLElement} root @param {import("../app.js").Context} context */
  constructor(root, { api }) {
    this.#root = root;
    root.setAttribute("aria-label", "Memories");
    this.#api = api;
    this.#source = new Source(api, () => this.#draw());
    const reload = () => this.#source.load();
    this.#detail = new MemoryDialog(api, reload);
    this.#prune = new PruneDialog(api, reload);
    this.#actions = {
      open: (id, hit) => this.#detail.open(id, hit),
      pin: (memory) => this.#do(() => this.#pin(memory)),
      forget: (memory) => this.#do(() => forget(api, memory)),
    };
  }

  /** Shown again, it is up to date: an answer may have used memories, or made some. */
  show() {
    this.#source.load();
  }

  async #do(work) {
    try {
      if (await work()) await this.#source.load();
    } catch (error) {
      announce(`That did not work: ${error.message}`);
    }
  }

  async #pin({ id, pinned }) {
    await this.#api.send("PUT", `memories/${encodeURIComponent(id)}/pin`, { pinned: !pinned });
    announce(pinned ? "Unpinned." : "Pinned: it is never evicted.");
    return true;
  }

  #draw() {
    render(
      html`<div class="view-head">
          <h1>Memories</h1>
          <p class="muted" role="status">${this.#summary()}</p>
          <button type="button" @click=${() => this.#prune.open()}>Prune…</button>
        </div>
        ${this.#toolbar()}
        ${this.#showsFilters ? filterPanel(this.#source) : nothing}
        ${chips(this.#source)}
        ${this.#content()}
        ${this.#pager()}`,
      this.#root,
    );
  }

  #summary() {
    const { total, query, isNarrowed } = this.#source;
    if (total === null) return nothing;
    if (query) return `the best ${count(total)} for “${query}”`;
    return isNarrowed ? `${plural(total, "memory matches", "memories match")}` : plural(total, "memory", "memories");
  }

  #toolbar() {
    const source = this.#source;
    const submit = (event) => {
      event.preventDefault();
      source.search(new FormData(event.target).get("query").trim());
    };
    // The cross in a search field empties it, and tells so by this event.
    const emptied = (event) => {
      if (event.target.value === "" && source.query) source.search("");
    };
    return html`<div class="toolbar">
      <form class="search" role="search" @submit=${submit}>
        <label class="sr-only" for="query">Search by meaning and words</label>
        <input id="query" name="query" type="search" placeholder="Search by meaning and words" maxlength="1000"
          .defaultValue=${source.query} @search=${emptied} @input=${emptied} />
        <button type="submit" class="quiet" aria-label="Search">${searchIcon}</button>
      </form>
      <button type="button" aria-expanded=${this.#showsFilters} aria-controls="filters"
        @click=${() => { this.#showsFilters = !this.#showsFilters; this.#draw(); }}>${filterIcon} Filters</button>
      <label class="order"><span class="sr-only">Order</span>
        <select .value=${live(source.query ? "" : source.sort)} ?disabled=${source.query !== ""}
          @change=${(event) => source.order(event.target.value)}>
          <option value="" hidden>best match first</option>
          ${Object.entries(SORTS).map(([sort, title]) => html`<option value=${sort}>${title}</option>`)}
        </select>
      </label>
    </div>`;
  }

  #content() {
    const { rows, error, isLoading, query, isNarrowed } = this.#source;
    if (error) return failed(error, () => this.#source.load());
    if (rows.length) return memoryTable(this.#source, this.#actions);
    if (isLoading) return loading("memories");
    if (query) return empty("Nothing found", "No memory matches these words, with the filters that are set.");
    if (isNarrowed) {
      const reset = () => this.#source.narrow(NO_FILTERS);
      return empty("No memory passes the filters", nothing, html`<button type="button" @click=${reset}>Remove them</button>`);
    }
    return empty(
      "Nothing is remembered yet",
      "What is said in a dialogue becomes memories.",
      html`<a class="button" href="#chat">Begin one</a>`,
    );
  }

  #pager() {
    const source = this.#source;
    if (source.query || !source.rows.length || source.error) return nothing;
    const [from, to] = source.range;
    return html`<nav class="pager" aria-label="Pages">
      <span class="muted">${count(from)}–${count(to)}${source.total === null ? nothing : ` of ${count(source.total)}`}</span>
      <button type="button" ?disabled=${!source.hasPrevious || source.isLoading} @click=${() => source.previousPage()}>Previous</button>
      <button type="button" ?disabled=${source.next === null || source.isLoading} @click=${() => source.nextPage()}>Next</button>
    </nav>`;
  }
}
