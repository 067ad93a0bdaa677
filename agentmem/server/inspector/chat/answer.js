/** One answer with what it read: its words can be pointed at, and the memories beside it show where each one looked. */

import { html, nothing, svg } from "../vendor/lit-html/lit-html.js";
import { ago, percent, plural } from "../format.js";
import { largest, wordsOf } from "./reading.js";

const HEATS = 5;

export class Answer {
  /** @type {import("./reading.js").Piece[]} */
  #pieces;
  #memories;
  #notes;
  #at = -1;
  #redraw;
  #open;

  /**
   * @param {string} text
   * @param {{ memories: object[], notes: string[], tokens: object[] | null }} read the server's record
   * @param {() => void} redraw
   * @param {(id: string) => void} open show a memory
   */
  constructor(text, read, redraw, open) {
    this.#memories = read.memories;
    this.#notes = read.notes;
    this.#pieces = wordsOf(text, read.tokens ?? [], read.memories.length);
    this.#redraw = redraw;
    this.#open = open;
  }

  draw() {
    const known = this.#memories.length > 0 && this.#pieces.some((piece) => piece.shares);
    return html`<div class="answer" @pointerleave=${() => this.#look(-1)}>
      ${known ? this.#words() : html`<p class="said">${this.#pieces.map((piece) => piece.text)}</p>`}
      <aside class="read" aria-label="What this answer read">${this.#read(known)}</aside>
    </div>`;
  }

  #look(at) {
    if (at === this.#at) return;
    this.#at = at;
    this.#redraw();
  }

  /** The words as one control: Tab comes to it, the arrow keys go from word to word. */
  #words() {
    const most = Math.max(...this.#pieces.map((piece) => piece.total));
    const first = this.#pieces.findIndex((piece) => piece.shares);
    return html`<p class="said words" role="listbox" aria-orientation="horizontal" aria-label="The answer, word by word"
      @keydown=${(event) => this.#step(event)} @focusout=${() => this.#look(-1)}>${this.#pieces.map((piece, at) => {
        if (!piece.shares) return piece.text;
        const heat = Math.round((HEATS * piece.total) / most);
        return html`<span class="word heat-${heat}" role="option" data-at=${at}
          tabindex=${at === (this.#at < 0 ? first : this.#at) ? "0" : "-1"} aria-selected=${at === this.#at}
          aria-label=${this.#told(piece)}
          @pointerenter=${() => this.#look(at)} @focus=${() => this.#look(at)} @click=${() => this.#look(at)}
          >${piece.text}</span>`;
      })}</p>`;
  }

  #told(piece) {
    const top = largest(piece.shares);
    return `${piece.text}: looked most at memory ${top + 1}, ${percent(piece.shares[top])}`;
  }

  #step(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const words = [...event.currentTarget.querySelectorAll(".word")];
    const here = words.indexOf(event.target);
    const to = { Home: 0, End: words.length - 1 }[event.key] ?? here + (steps[event.key] ?? NaN);
    if (!words[to]) return;
    event.preventDefault();
    words[to].focus();
  }

  #read(known) {
    if (!this.#memories.length) {
      return html`<p class="muted">No memory was read: the answer came from this dialogue alone.</p>`;
    }
    const piece = this.#pieces[this.#at];
    const shares = piece ? piece.shares : this.#memories.map((memory) => memory.attention);
    const top = largest(shares);
    const scale = Math.max(
      ...this.#memories.map((memory) => memory.attention),
      ...this.#pieces.flatMap((each) => each.shares ?? []),
    );
    return html`<p class="read-title">
        ${piece
          ? html`“${piece.text}” looked at`
          : html`Read ${plural(this.#memories.length, "memory", "memories")}${known ? html`<span class="muted">: point at a word</span>` : nothing}`}
      </p>
      <ol>
        ${this.#memories.map((memory, at) => html`<li class=${piece && at === top ? "top-read" : ""}>
          <button type="button" class="memory-link" @click=${() => this.#open(memory.id)}>${memory.text}</button>
          <span class="read-meta">${memory.role} · ${ago(memory.created_at)}${memory.rebuilt ? " · encoded anew" : ""}</span>
          <span class="share">${bar(shares[at] / scale, memory.attention / scale)}<span class="share-number">${percent(shares[at])}</span></span>
        </li>`)}
      </ol>
      ${this.#notes.map((note) => html`<p class="note">${note}</p>`)}`;
  }
}

/** A share as a bar, with a mark at the mean over the whole answer. */
const bar = (share, mean) => html`<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
  <rect class="bar-all" width="100" height="8" rx="2" />
  ${svg`<rect class="bar-share" width=${(100 * share).toFixed(2)} height="8" rx="2" />`}
  ${svg`<rect class="bar-mean" x=${Math.min(99, 100 * mean).toFixed(2)} width="1" height="8" />`}
</svg>`;
