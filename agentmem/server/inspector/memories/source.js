/** What the table shows: a page of a list, or what a search found. Pages are the server's; only one is held. */

const PAGE = 50;
const FOUND = 50;

/** Filters that the API knows, as they are when nothing is narrowed. */
export const NO_FILTERS = Object.freeze({
  role: "", tier: "", pinned: "", tags: "", min_uses: "", since: "", until: "", session: "",
});

export class Source {
  #api;
  #changed;
  #filters = { ...NO_FILTERS };
  #sort = "-created_at";
  #query = "";
  /** Cursors of the pages up to this one; the first page has none. @type {(string | null)[]} */
  #cursors = [null];
  /** @type {AbortController | null} */
  #running = null;

  /** @type {{ memory: object, hit: object | null }[]} */
  rows = [];
  /** How many pass the filters; null while that is not known. @type {number | null} */
  total = null;
  /** @type {string | null} */
  next = null;
  isLoading = true;
  /** @type {Error | null} */
  error = null;

  /** @param {import("../api.js").Api} api @param {() => void} changed */
  constructor(api, changed) {
    this.#api = api;
    this.#changed = changed;
  }

  get filters() {
    return this.#filters;
  }

  get sort() {
    return this.#sort;
  }

  get query() {
    return this.#query;
  }

  get isNarrowed() {
    return Object.values(this.#filters).some((value) => value !== "");
  }

  /** Numbers of the first and last row, from 1. */
  get range() {
    const before = (this.#cursors.length - 1) * PAGE;
    return [before + 1, before + this.rows.length];
  }

  get hasPrevious() {
    return this.#cursors.length > 1;
  }

  /** @param {Partial<typeof NO_FILTERS>} filters */
  narrow(filters) {
    this.#filters = { ...this.#filters, ...filters };
    this.#restart();
  }

  /** @param {string} sort */
  order(sort) {
    this.#sort = sort;
    this.#restart();
  }

  /** @param {string} query "" for the list again */
  search(query) {
    this.#query = query;
    this.#restart();
  }

  previousPage() {
    this.#cursors.pop();
    this.load();
  }

  nextPage() {
    this.#cursors.push(this.next);
    this.load();
  }

  #restart() {
    this.#cursors = [null];
    this.total = null;
    this.load();
  }

  /** Ask the server. What was asked before and has not come yet is not waited for. */
  async load() {
    this.#running?.abort();
    const running = new AbortController();
    this.#running = running;
    this.isLoading = true;
    this.error = null;
    this.#changed();
    try {
      const loaded = await (this.#query ? this.#find(running.signal) : this.#list(running.signal));
      if (running.signal.aborted) return;
      if (!loaded.rows.length && this.hasPrevious) {
        this.previousPage(); // all of this page are gone
        return;
      }
      Object.assign(this, loaded);
    } catch (error) {
      if (running.signal.aborted) return;
      this.error = error;
    }
    this.isLoading = false;
    this.#changed();
  }

  async #list(signal) {
    const narrowed = this.#given();
    const page = { ...narrowed, sort: this.#sort, limit: PAGE, cursor: this.#cursors.at(-1) };
    const [{ data, next_cursor: next }, { memories: total }] = await Promise.all([
      this.#api.get("memories", page, signal),
      this.#api.get("memories/count", narrowed, signal),
    ]);
    return { rows: data.map((memory) => ({ memory, hit: null })), next, total };
  }

  async #find(signal) {
    const { tags, ...narrowed } = this.#given();
    const body = { ...narrowed, query: this.#query, top_k: FOUND, explain: true };
    if (tags) body.tags = [tags];
    const { data } = await this.#api.send("POST", "memories/search", body, signal);
    return { rows: data.map((hit) => ({ memory: hit.memory, hit })), next: null, total: data.length };
  }

  /** The filters that narrow something, in the API's form. Days are those of whoever looks. */
  #given() {
    const { since, until, min_uses: uses, pinned, ...plain } = this.#filters;
    const given = Object.fromEntries(Object.entries(plain).filter(([, value]) => value !== ""));
    if (since) given.since = new Date(`${since}T00:00`).toISOString();
    if (until) {
      const end = new Date(`${until}T00:00`);
      end.setDate(end.getDate() + 1);
      given.until = end.toISOString();
    }
    if (uses) given.min_uses = Number(uses);
    if (pinned) given.pinned = pinned === "yes";
    return given;
  }
}
