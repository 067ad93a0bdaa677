/** The table of memories: one page of rows, which become cards on a narrow screen. */

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { ago, bytes, count, date, percent } from "../format.js";
import { binIcon, pinIcon } from "../parts/icons.js";
import { sparkline } from "../parts/sparkline.js";

const COLUMNS = [
  { title: "Memory", name: "text" },
  { title: "Role", name: "role" },
  { title: "Written", name: "written", key: "created_at" },
  { title: "Uses", name: "uses", key: "uses" },
  { title: "Attention", name: "attention", key: "attention" },
  { title: "Tier", name: "tier" },
  { title: "KV", name: "bytes", key: "kv_bytes" },
];

/**
 * @typedef {{ open(id: string): void, pin(memory: object): void, forget(memory: object): void }} Actions
 * @param {import("./source.js").Source} source
 * @param {Actions} actions
 */
export function memoryTable(source, actions) {
  const found = source.query !== "";
  const top = Math.max(0.05, ...source.rows.flatMap(({ memory }) => memory.reads.map((read) => read.attention)));
  return html`<table class="memories ${found ? "found" : ""}" aria-busy=${source.isLoading}>
    <caption class="sr-only">Memories${found ? ", best match first" : ""}</caption>
    <thead>
      <tr>
        ${found ? html`<th scope="col" class="c-score">Score</th>` : nothing}
        ${COLUMNS.map((column) => heading(column, source, found))}
        <th scope="col" class="c-actions"><span class="sr-only">Actions</span></th>
      </tr>
    </thead>
    <tbody>
      ${repeat(source.rows, ({ memory }) => memory.id, ({ memory, hit }) => row(memory, hit, top, actions))}
    </tbody>
  </table>`;
}

/** A column's head; one that can be sorted by is a button, largest first at the first press. */
function heading({ title, name, key }, source, found) {
  if (!key || found) return html`<th scope="col" class="c-${name}">${title}</th>`;
  const descending = source.sort === `-${key}`;
  const sorted = descending ? "descending" : source.sort === key ? "ascending" : nothing;
  return html`<th scope="col" class="c-${name}" aria-sort=${sorted}>
    <button type="button" class="sort" @click=${() => source.order(descending ? key : `-${key}`)}>${title}<span
      class="arrow" aria-hidden="true">${descending ? "↓" : source.sort === key ? "↑" : ""}</span></button>
  </th>`;
}

function row(memory, hit, top, actions) {
  return html`<tr class=${memory.pinned ? "pinned" : ""}>
    ${hit ? html`<td class="c-score" data-label="Score">${hit.score.toFixed(2)}</td>` : nothing}
    <td class="c-text">
      <button type="button" class="memory-link" @click=${() => actions.open(memory.id, hit)}>${memory.text}</button>
      ${memory.tags.map((tag) => html`<span class="tag">${tag}</span>`)}
    </td>
    <td class="c-role" data-label="Role"><span class="role ${memory.role}">${memory.role}</span></td>
    <td class="c-written" data-label="Written"><time datetime=${memory.created_at} title=${date(memory.created_at)}>
      ${ago(memory.created_at)}</time></td>
    <td class="c-uses" data-label="Uses">${count(memory.uses)}</td>
    <td class="c-attention" data-label="Attention">
      ${sparkline(memory.reads, top)}
      ${memory.uses ? html`<span class="mean" title="mean share">${percent(memory.attention / memory.uses)}</span>` : nothing}
    </td>
    <td class="c-tier" data-label="Tier"><span class="tier ${memory.tier}">${memory.tier}</span></td>
    <td class="c-bytes" data-label="KV">${memory.kv_bytes ? bytes(memory.kv_bytes) : "–"}</td>
    <td class="c-actions">
      <button type="button" class="quiet pin" aria-pressed=${memory.pinned} aria-label="Pin: ${start(memory.text)}"
        title=${memory.pinned ? "Pinned: never evicted. Press to unpin" : "Pin: never evict it"}
        @click=${() => actions.pin(memory)}>${pinIcon}</button>
      <button type="button" class="quiet" aria-label="Forget: ${start(memory.text)}" title="Forget it"
        @click=${() => actions.forget(memory)}>${binIcon}</button>
    </td>
  </tr>`;
}

/** Enough of a text to know it by. @param {string} text */
export const start = (text) => (text.length > 60 ? `${text.slice(0, 57).trimEnd()}…` : text);
