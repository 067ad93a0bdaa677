/** Attention shares of a memory's newest reads, as small bars from the oldest to the newest. */

import { html, svg } from "../vendor/lit-html/lit-html.js";
import { percent } from "../format.js";

const BAR = 4;
const GAP = 2;
const HEIGHT = 22;
const MOST = 20;

/**
 * @param {{ at: string, attention: number }[]} reads oldest first
 * @param {number} top the share that is drawn at full height
 */
export function sparkline(reads, top) {
  const width = MOST * (BAR + GAP) - GAP;
  if (!reads.length) return html`<span class="muted">not read yet</span>`;
  const shares = reads.map((read) => read.attention);
  const label = `Attention share of the last ${reads.length} reads, newest ${percent(shares.at(-1))}, most ${percent(Math.max(...shares))}`;
  const first = MOST - shares.length;
  const bars = shares.map((share, at) => {
    const height = Math.max(1.5, Math.min(1, share / top) * (HEIGHT - 2));
    return svg`<rect x=${(first + at) * (BAR + GAP)} y=${HEIGHT - 1 - height} width=${BAR} height=${height} rx="1" />`;
  });
  return html`<svg class="sparkline" role="img" aria-label=${label} viewBox="0 0 ${width} ${HEIGHT}"
    width=${width} height=${HEIGHT}><title>${label}</title>
    <path class="ground" d="M0 ${HEIGHT}H${width}" />${bars}</svg>`;
}
