/** Charts over time, drawn by uPlot in the colours of the theme. */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { count, mark } from "../format.js";
import { colour } from "../theme.js";

const HEIGHT = 190;
/** Steps of an axis that counts: whole numbers. */
const STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

/**
 * @typedef {{ label: string, values: number[], tint: string, bars?: boolean }} Series
 * `tint` is a custom property of the theme
 */

export class TimeChart {
  #host;
  #times;
  #series;
  /** @type {uPlot | null} */
  #plot = null;
  #end;
  #watch;

  /**
   * @param {HTMLElement} host
   * @param {number[]} times seconds
   * @param {Series[]} series
   * @param {number} end where the axis of time ends: bars begin at their time, and the last one takes room too
   */
  constructor(host, times, series, end = times.at(-1)) {
    this.#end = end;
    this.#host = host;
    this.#times = times;
    this.#series = series;
    this.#watch = new ResizeObserver(() => this.#plot?.setSize({ width: host.clientWidth, height: HEIGHT }));
    this.#watch.observe(host);
    this.draw();
  }

  /** Draw anew, in the colours of now. */
  draw() {
    this.#plot?.destroy();
    const ink = colour("--muted");
    const line = colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const options = {
      width: this.#host.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: [this.#times[0], this.#end] },
        y: { range: (_, least, most) => [Math.min(0, least), Math.max(most * 1.05, 1)] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 80, size: 34, values: (_, ticks, __, ___, apart) => ticks.map((t) => mark(t, apart)) },
        { ...axis, values: (_, ticks) => ticks.map(count), incrs: STEPS, size: 60 },
      ],
      series: [{}, ...this.#series.map((series) => this.#drawn(series))],
    };
    this.#plot = new uPlot(options, [this.#times, ...this.#series.map(({ values }) => values)], this.#host);
  }

  #drawn({ label, tint, bars }) {
    const stroke = colour(tint);
    if (!bars) return { label, stroke, width: 2, fill: colour(`${tint}-soft`), points: { show: false } };
    return { label, stroke, fill: stroke, width: 0, paths: uPlot.paths.bars({ size: [0.7, 24], align: 1 }), points: { show: false } };
  }

  remove() {
    this.#watch.disconnect();
    this.#plot?.destroy();
  }
}
