/** Numbers, sizes and times as people read them. */

const NUMBER = new Intl.NumberFormat("en");
// Day before month and 24 hours: read alike everywhere.
const DATE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const SHORT_DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const MONTH = new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });
const SECONDS = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** @param {number} n */
export const count = (n) => NUMBER.format(n);

/** "1 memory", "2 memories". @param {number} n @param {string} one @param {string} many */
export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

/** An attention share, 0 to 1. @param {number} share */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value.toFixed(1)}\u2009%`;
}

/** @param {number} n */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; n >= 1024 && at < units.length - 1; at += 1) n /= 1024;
  return `${at && n < 10 ? n.toFixed(1) : Math.round(n)}\u2009${units[at]}`;
}

/** @param {string} iso */
export const date = (iso) => DATE.format(new Date(iso));

/** @param {string} iso */
export const day = (iso) => DAY.format(new Date(iso));

/** A moment on an axis whose marks are so many seconds apart. @param {number} seconds since 1970 @param {number} apart */
export function mark(seconds, apart) {
  const format = apart < 60 ? SECONDS : apart < 86_400 ? CLOCK : apart < 28 * 86_400 ? SHORT_DAY : MONTH;
  return format.format(new Date(1000 * seconds));
}

/** "5 minutes ago"; a date where it is longer than a week ago. @param {string} iso */
export function ago(iso) {
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const steps = [["second", 60], ["minute", 60], ["hour", 24], ["day", 7]];
  let value = seconds;
  for (const [unit, size] of steps) {
    if (Math.abs(value) < size) return unit === "second" ? "just now" : AGO.format(Math.round(value), unit);
    value /= size;
  }
  return DAY.format(new Date(iso));
}
