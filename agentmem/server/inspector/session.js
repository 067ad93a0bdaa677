/** Who looks at whose memories. Kept for this tab alone, and gone with it. */

const FIELDS = ["key", "user", "agent"];

export class Session {
  key = "";
  user = "";
  agent = "";

  constructor() {
    for (const name of FIELDS) this[name] = sessionStorage.getItem(`agentmem.${name}`) ?? "";
  }

  /** @param {Partial<Record<"key" | "user" | "agent", string>>} changes */
  set(changes) {
    Object.assign(this, changes);
    for (const name of FIELDS) {
      if (this[name]) sessionStorage.setItem(`agentmem.${name}`, this[name]);
      else sessionStorage.removeItem(`agentmem.${name}`);
    }
  }
}
