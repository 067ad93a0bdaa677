/** Short news at the edge of the page, read out by screen readers, gone after a while. */

const SHOWN_MS = 6000;
const region = document.createElement("div");
region.className = "toast";
region.setAttribute("role", "status");
region.popover = "manual";
document.body.append(region);
let timer = 0;

/** @param {string} text */
export function announce(text) {
  clearTimeout(timer);
  region.textContent = text;
  // A modal dialog lies above all else of the page, except what is shown above it in turn.
  region.hidePopover();
  region.showPopover();
  timer = setTimeout(() => region.hidePopover(), SHOWN_MS);
}
