/** The store in numbers and charts: how much is kept, in which tiers, how often it is used, and what went. */

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { bytes, count, date, percent, plural } from "../format.js";
import { empty, failed, loading } from "../parts/states.js";
import { TimeChart } from "./charts.js";

export class OverviewView {
  #root;
  #api;
  #stats = null;
  #activity = null;
  #error = null;
  /** @type {TimeChart[]} */
  #charts = [];

  /** @param {HTMLElement} root @param {import("../app.js").Context} context */
  constructor(root, { api }) {
    this.#root = root;
    root.setAttribute("aria-label", "Overview");
    this.#api = api;
  }

  async show() {
    this.#draw();
    try {
      [this.#stats, this.#activity] = await Promise.all([
        this.#api.get("memories/stats"),
        this.#api.get("memories/activity"),
      ]);
      this.#error = null;
    } catch (error) {
      this.#error = error;
    }
    this.#draw();
    this.#drawCharts();
  }

  themed() {
    for (const chart of this.#charts) chart.draw();
  }

  #draw() {
    render(
      html`<div class="view-head"><h1>Overview</h1></div>
        ${this.#error ? failed(this.#error, () => this.show()) : this.#stats ? this.#content() : loading("the numbers")}`,
      this.#root,
    );
  }

  #content() {
    const { memories } = this.#stats;
    const { periods } = this.#activity;
    if (!periods.length) return empty("Nothing is remembered yet", "Numbers and charts follow with the first memory.");
    const gone = periods.reduce((sum, each) => sum + each.evicted + each.deleted + each.kv_dropped, 0);
    return html`${tiles(this.#stats)}
      <div class="charts">
        ${figure("Memories over time", html`<div class="plot" data-chart="size" role="img"
            aria-label="Memories over time: ${count(periods[0].memories)} at first, ${count(memories)} now"></div>`,
          numbers(periods, { memories: "memories", added: "written" }))}
        ${figure("What went", gone
          ? html`<div class="plot" data-chart="gone" role="img"
              aria-label="Evicted, forgotten and gone cold over time: ${count(gone)} in all"></div>${GONE_KEY}`
          : html`<p class="quiet-note">Nothing was evicted or forgotten yet.</p>`,
          gone ? numbers(periods, { evicted: "evicted", deleted: "forgotten", kv_dropped: "gone cold" }) : nothing)}
        ${figure("Tiers", tiers(this.#stats))}
        ${figure("How often memories were used", spread(this.#activity.uses))}
      </div>`;
  }

  #drawCharts() {
    for (const chart of this.#charts) chart.remove();
    this.#charts = [];
    const periods = this.#activity?.periods ?? [];
    if (!periods.length) return;
    const starts = periods.map(({ start }) => Date.parse(start) / 1000);
    const ends = starts.map((start) => start + this.#activity.period_seconds);
    const made = {
      // A period's count is that of its end; the line begins with what was there before the first.
      size: (host) => new TimeChart(host, [starts[0], ...ends], [
        { label: "memories", values: [before(periods[0]), ...periods.map((each) => each.memories)], tint: "--accent" },
      ]),
      gone: (host) => new TimeChart(host, starts, stacked(periods), ends.at(-1)),
    };
    for (const host of this.#root.querySelectorAll("[data-chart]")) this.#charts.push(made[host.dataset.chart](host));
  }
}

/** Memories at the beginning of a period. */
const before = ({ memories, added, deleted, evicted }) => Math.max(0, memories - added + deleted + evicted);

/** Bars on top of each other: the tallest is drawn first, and each lower one over it. */
function stacked(periods) {
  const bar = (label, tint, value) => ({ label, tint, values: periods.map(value), bars: true });
  return [
    bar("gone cold", "--cold", (each) => each.evicted + each.deleted + each.kv_dropped),
    bar("forgotten", "--warn", (each) => each.evicted + each.deleted),
    bar("evicted", "--danger", (each) => each.evicted),
  ];
}

const GONE_KEY = html`<ul class="key">
  <li><span class="swatch evicted"></span>evicted</li>
  <li><span class="swatch forgotten"></span>forgotten on request</li>
  <li><span class="swatch cold"></span>gone cold (KV dropped)</li>
</ul>`;

const figure = (title, body, table = nothing) =>
  html`<section class="card chart"><h2>${title}</h2>${body}${table}</section>`;

const tile = (name, value, more) =>
  html`<div class="tile"><dt>${name}</dt><dd>${value}${more ? html`<span class="muted">${more}</span>` : nothing}</dd></div>`;

const tiles = (stats) => html`<dl class="tiles">
  ${tile("Memories", count(stats.memories), `${count(stats.pinned)} pinned`)}
  ${tile("KV on disk", bytes(stats.kv_bytes), stats.streams ? plural(stats.streams, "stream", "streams") : "")}
  ${tile("Text", bytes(stats.text_bytes), plural(stats.tokens, "token", "tokens"))}
  ${tile("Uses", count(stats.uses), stats.memories ? `${(stats.uses / stats.memories).toFixed(1)} per memory` : "")}
</dl>`;

/** The same numbers as a table, for whoever cannot see the chart or wants to know exactly. */
const numbers = (periods, columns) => html`<details class="numbers">
  <summary>Numbers</summary>
  <div class="scroll" tabindex="0" role="region" aria-label="Numbers of the chart">
    <table>
      <thead><tr><th scope="col">From</th>${Object.values(columns).map((title) => html`<th scope="col">${title}</th>`)}</tr></thead>
      <tbody>
        ${periods.toReversed().map((each) => html`<tr><th scope="row">${date(each.start)}</th>
          ${Object.keys(columns).map((name) => html`<td>${count(each[name])}</td>`)}</tr>`)}
      </tbody>
    </table>
  </div>
</details>`;

function tiers({ memories, warm, cold }) {
  const share = memories ? warm / memories : 0;
  return html`<svg class="split" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
      <rect class="cold" width="100" height="10" />
      <rect class="warm" width=${(100 * share).toFixed(2)} height="10" />
    </svg>
    <dl class="key">
      <div><dt><span class="swatch warm"></span>warm</dt><dd>${count(warm)} (${percent(share)}): KV on disk, read at once</dd></div>
      <div><dt><span class="swatch cold"></span>cold</dt><dd>${count(cold)} (${percent(memories ? 1 - share : 0)}): text only,
        encoded anew when it is recalled</dd></div>
    </dl>`;
}

function spread(uses) {
  if (!uses.length) return html`<p class="quiet-note">There is no memory now.</p>`;
  const most = Math.max(...uses.map(({ memories }) => memories));
  return html`<table class="spread">
    <thead class="sr-only"><tr><th scope="col">Uses</th><th scope="col">Share</th><th scope="col">Memories</th></tr></thead>
    <tbody>
      ${uses.map(({ least, most: top, memories }) => html`<tr>
        <th scope="row">${least === top ? count(least) : `${count(least)}–${count(top)}`}</th>
        <td><svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
          <rect class="bar-share" width=${((100 * memories) / most).toFixed(2)} height="8" rx="1" /></svg></td>
        <td>${count(memories)}</td>
      </tr>`)}
    </tbody>
  </table>`;
}
