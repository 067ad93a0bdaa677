/** Native dialogs: the browser keeps the focus inside, closes them at Escape, and gives the focus back. */

import { html, render } from "../vendor/lit-html/lit-html.js";
import { closeIcon } from "./icons.js";

/** A dialog that is in the page only while it is open. */
export class Dialog {
  #element = document.createElement("dialog");
  #title = "";

  /** @param {string} name class of the dialog, and stem of its title's id @param {() => void} [closed] */
  constructor(name, closed = () => {}) {
    this.name = name;
    this.#element.className = `dialog ${name}`;
    this.#element.setAttribute("aria-labelledby", `${name}-title`);
    this.#element.addEventListener("close", () => {
      this.#element.remove();
      closed();
    });
    // A click beside the dialog is one on its backdrop, which belongs to the element itself.
    this.#element.addEventListener("click", (event) => {
      if (event.target === this.#element) this.close();
    });
  }

  get isOpen() {
    return this.#element.open;
  }

  /** Show content, and open if it is not open yet. @param {string} title @param {unknown} content */
  show(title, content) {
    this.#title = title;
    this.draw(content);
    if (this.isOpen) return;
    document.body.append(this.#element);
    this.#element.showModal();
  }

  /** Draw the content anew. @param {unknown} content */
  draw(content) {
    render(
      html`<div class="dialog-box">
        <header class="dialog-head">
          <h2 id="${this.name}-title">${this.#title}</h2>
          <button type="button" class="quiet" aria-label="Close" @click=${() => this.close()}>${closeIcon}</button>
        </header>
        ${content}
      </div>`,
      this.#element,
    );
  }

  close() {
    this.#element.close();
  }}

/**
 * Ask before something that cannot be undone. Resolves to whether it was confirmed.
 * @param {{ title: string, text: unknown, action: string }} question
 * @returns {Promise<boolean>}
 */
export function confirm({ title, text, action }) {
  return new Promise((resolve) => {
    let agreed = false;
    const dialog = new Dialog("confirm", () => resolve(agreed));
    const agree = () => {
      agreed = true;
      dialog.close();
    };
    dialog.show(
      title,
      html`<div class="dialog-body">${text}</div>
        <footer class="dialog-foot">
          <button type="button" autofocus @click=${() => dialog.close()}>Cancel</button>
          <button type="button" class="danger" @click=${agree}>${action}</button>
        </footer>`,
    );
  });
}
