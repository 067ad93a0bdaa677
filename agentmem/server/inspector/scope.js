/** The dialog that says whose memories are looked at. */

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { Dialog } from "./parts/dialog.js";

/**
 * @param {import("./session.js").Session} session
 * @param {{ key: string | null, grants: { user: string, agent: string }[] }} access what the key reaches
 * @param {(chosen: { user?: string, agent?: string, key?: string }) => void} choose
 */
export function scopeDialog(session, access, choose) {
  const dialog = new Dialog("scope");
  const named = access.grants.every(({ user, agent }) => user !== "*" && agent !== "*");
  const done = (chosen) => {
    dialog.close();
    choose(chosen);
  };
  const submit = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    done(named ? access.grants[Number(form.get("grant"))] : { user: form.get("user").trim(), agent: form.get("agent").trim() });
  };
  dialog.show(
    "Whose memories",
    html`<form @submit=${submit}>
      <div class="dialog-body">
        ${named ? choices(session, access.grants) : names(session)}
        ${access.key === null
          ? nothing
          : html`<p class="muted">You came in with the key <strong>${access.key}</strong>.</p>`}
      </div>
      <footer class="dialog-foot">
        ${access.key === null
          ? nothing
          : html`<button type="button" @click=${() => done({ key: "", user: "", agent: "" })}>Use another key</button>`}
        <button type="submit" class="primary">Show</button>
      </footer>
    </form>`,
  );
}

const choices = (session, grants) =>
  html`<label class="field">User and agent
    <select name="grant" autofocus>
      ${grants.map(({ user, agent }, at) =>
        html`<option value=${at} ?selected=${user === session.user && agent === session.agent}>
          ${agent ? `${user} · ${agent}` : user}
        </option>`)}
    </select>
  </label>`;

const names = (session) =>
  html`<label class="field">User
      <input name="user" required autofocus maxlength="256" .value=${session.user} autocomplete="off" spellcheck="false" />
    </label>
    <label class="field"><span>Agent <span class="muted">(mostly none)</span></span>
      <input name="agent" maxlength="256" .value=${session.agent} autocomplete="off" spellcheck="false" />
    </label>`;
