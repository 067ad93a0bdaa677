/** Icons: drawn in the colour of the text around them, and hidden from screen readers. */

import { html, svg } from "../vendor/lit-html/lit-html.js";

const icon = (body) =>
  html`<svg class="icon" viewBox="0 0 20 20" width="18" height="18" aria-hidden="true" focusable="false">${body}</svg>`;

export const pinIcon = icon(svg`<path d="M7 3h6l-1 5 3 3v1.5H5V11l3-3-1-5Zm3 9.5V17.5" />`);
export const binIcon = icon(svg`<path d="M4 6h12M8 6V4h4v2m-6.5 0 .7 10h7.6l.7-10M8.5 9v4.5m3-4.5v4.5" />`);
export const searchIcon = icon(svg`<circle cx="9" cy="9" r="5" /><path d="m13 13 4 4" />`);
export const sunIcon = icon(
  svg`<circle cx="10" cy="10" r="3.5" /><path d="M10 2v2m0 12v2M2 10h2m12 0h2M4.5 4.5 6 6m8 8 1.5 1.5m0-11L14 6m-8 8-1.5 1.5" />`,
);
export const moonIcon = icon(svg`<path d="M16 11.5A6.5 6.5 0 0 1 8.5 4 6.5 6.5 0 1 0 16 11.5Z" />`);
export const closeIcon = icon(svg`<path d="m5 5 10 10M15 5 5 15" />`);
export const filterIcon = icon(svg`<path d="M3 5h14M6 10h8m-5 5h2" />`);
export const personIcon = icon(svg`<circle cx="10" cy="7" r="3" /><path d="M4 17c.5-3.5 3-5 6-5s5.5 1.5 6 5" />`);
