/** What stands where there is nothing to show, not yet, or not any more. */

import { html } from "../vendor/lit-html/lit-html.js";

/** @param {string} title @param {unknown} text @param {unknown} [action] */
export const empty = (title, text, action) =>
  html`<div class="state"><p class="state-title">${title}</p><p>${text}</p>${action}</div>`;

/** @param {string} what is loaded */
export const loading = (what) =>
  html`<div class="state" role="status"><span class="pulse" aria-hidden="true"></span> Loading ${what}…</div>`;

/** @param {Error} error @param {() => void} again */
export const failed = (error, again) =>
  html`<div class="state error" role="alert">
    <p class="state-title">That did not work</p>
    <p>${error.message}</p>
    <button type="button" @click=${again}>Try again</button>
  </div>`;
