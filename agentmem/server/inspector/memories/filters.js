/** The filters of the table: a panel of fields, and a chip for each that is set. */

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { day } from "../format.js";
import { closeIcon } from "../parts/icons.js";

const CHOICES = {
  role: { label: "Role", options: { user: "user", assistant: "assistant", system: "system", tool: "tool" } },
  tier: { label: "Tier", options: { warm: "warm (KV on disk)", cold: "cold (text only)" } },
  pinned: { label: "Pinned", options: { yes: "pinned", no: "not pinned" } },
};
const INPUTS = {
  tags: { label: "Tag", type: "text", maxlength: 256 },
  session: { label: "Dialogue", type: "text", maxlength: 256 },
  min_uses: { label: "Uses, at least", type: "number" },
  since: { label: "Written from", type: "date" },
  until: { label: "Written until", type: "date" },
};

/** @param {import("./source.js").Source} source */
export function filterPanel(source) {
  const set = (event) => source.narrow({ [event.target.name]: event.target.value.trim() });
  return html`<div class="filters" id="filters">
    ${Object.entries(CHOICES).map(([name, { label, options }]) => html`<label class="field">${label}
      <select name=${name} .value=${live(source.filters[name])} @change=${set}>
        <option value="">any</option>
        ${Object.entries(options).map(([value, text]) => html`<option value=${value}>${text}</option>`)}
      </select>
    </label>`)}
    ${Object.entries(INPUTS).map(([name, { label, type, maxlength }]) => html`<label class="field">${label}
      <input name=${name} type=${type} min=${type === "number" ? 0 : nothing} step=${type === "number" ? 1 : nothing}
        maxlength=${maxlength ?? nothing} autocomplete="off" .value=${live(source.filters[name])} @change=${set} />
    </label>`)}
  </div>`;
}

/** What is set, each to be taken back. @param {import("./source.js").Source} source */
export function chips(source) {
  const set = Object.entries(source.filters).filter(([, value]) => value !== "");
  if (!set.length) return nothing;
  return html`<ul class="chips" aria-label="Filters that are set">
    ${set.map(([name, value]) => {
      const { label, options, type } = CHOICES[name] ?? INPUTS[name];
      const shown = options?.[value] ?? (type === "date" ? day(`${value}T00:00`) : value);
      return html`<li><button type="button" class="chip" aria-label="Remove the filter ${label}: ${shown}"
        @click=${() => source.narrow({ [name]: "" })}>${label}: ${shown} ${closeIcon}</button></li>`;
    })}
  </ul>`;
}
