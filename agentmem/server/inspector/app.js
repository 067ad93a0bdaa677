/** The page: who looks at whose memories, and which of its views is shown. */

import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import { Api } from "./api.js";
import { ChatView } from "./chat/view.js";
import { MemoriesView } from "./memories/view.js";
import { OverviewView } from "./overview/view.js";
import { moonIcon, personIcon, sunIcon } from "./parts/icons.js";
import { failed, loading } from "./parts/states.js";
import { scopeDialog } from "./scope.js";
import { Session } from "./session.js";
import { isDark, startTheme, toggleTheme } from "./theme.js";

const VIEWS = [
  { name: "memories", title: "Memories", make: (root, context) => new MemoriesView(root, context) },
  { name: "chat", title: "Chat", make: (root, context) => new ChatView(root, context) },
  { name: "overview", title: "Overview", make: (root, context) => new OverviewView(root, context) },
];

/** @typedef {{ api: Api, model: string }} Context what every view works with */

class App {
  #session = new Session();
  #api = new Api(this.#session, () => this.#refused());
  #access = null;
  #problem = null;
  #model = "";
  /** @type {Map<string, { root: HTMLElement, view: { show(): void, themed?(): void } }>} */
  #views = new Map();

  async start() {
    startTheme(() => this.#themed());
    addEventListener("hashchange", () => this.#draw());
    await this.#enter();
  }

  /** Ask what the key reaches. */
  async #enter() {
    this.#forgetViews();
    this.#access = null;
    this.#problem = loading("what may be shown");
    this.#draw();
    try {
      this.#access = await this.#api.get("access");
      this.#settle();
      this.#model = (await this.#api.get("models")).data[0].id;
      this.#problem = null;
    } catch (error) {
      this.#access = null;
      this.#problem = error.status === 401 ? this.#keyForm(this.#session.key ? "The server does not accept this key." : "") : failed(error, () => this.#enter());
    }
    this.#draw();
  }

  /** Keep to what the key reaches. */
  #settle() {
    const { grants, user } = this.#access;
    const reached = grants.some(
      (grant) => ["*", this.#session.user].includes(grant.user) && ["*", this.#session.agent].includes(grant.agent),
    );
    if (!this.#session.user || !reached) {
      const agent = grants[0].agent === "*" ? "" : grants[0].agent;
      this.#session.set({ user: user ?? "", agent });
    }
  }

  /** The server does not take the key: ask for one, and say so if there was one. */
  #refused() {
    if (this.#access === null) return;
    this.#access = null;
    this.#forgetViews();
    this.#problem = this.#keyForm("The server no longer accepts the key that this page used.");
    this.#draw();
  }

  /** @param {string} message what was wrong with the last one */
  #keyForm(message) {
    const submit = (event) => {
      event.preventDefault();
      this.#session.set({ key: new FormData(event.target).get("key").trim() });
      this.#enter();
    };
    return html`<form class="door card" @submit=${submit}>
      <h1>This server asks for a key</h1>
      <p class="muted">It begins with <code>am-</code>; <code>agentmem keys add</code> makes one. It is kept in this
        tab only.</p>
      <label class="field">API key
        <input name="key" type="password" required autocomplete="off" spellcheck="false"
          aria-describedby="key-problem" aria-invalid=${message ? "true" : "false"} />
      </label>
      <p id="key-problem" class="problem" role="alert">${message}</p>
      <button type="submit" class="primary">Open</button>
    </form>`;
  }

  #chooseScope() {
    scopeDialog(this.#session, this.#access, (chosen) => {
      this.#session.set(chosen);
      if ("key" in chosen) this.#enter();
      else {
        this.#forgetViews();
        this.#draw();
      }
    });
  }

  #forgetViews() {
    for (const { root } of this.#views.values()) root.remove();
    this.#views.clear();
  }

  #themed() {
    for (const { view } of this.#views.values()) view.themed?.();
    this.#draw();
  }

  #draw() {
    const current = VIEWS.find(({ name }) => location.hash === `#${name}`) ?? VIEWS[0];
    const ready = this.#access !== null && !this.#problem;
    const known = ready && this.#session.user !== "";
    document.title = ready ? `${current.title} · agentmem` : "agentmem inspector";
    render(
      html`<a class="skip" href="#main" @click=${skip}>Skip to the content</a>
        <header class="top">
          <span class="brand"><img src="inspector/icon.svg" alt="" width="26" height="26" />agentmem</span>
          <nav aria-label="Views" ?hidden=${!ready}>
            ${VIEWS.map(({ name, title }) =>
              html`<a href="#${name}" aria-current=${name === current.name ? "page" : nothing}>${title}</a>`)}
          </nav>
          <div class="top-end">
            ${ready ? this.#whose() : nothing}
            <button type="button" class="quiet" @click=${() => { toggleTheme(); this.#themed(); }}
              aria-label=${isDark() ? "Use light colours" : "Use dark colours"}>
              ${isDark() ? sunIcon : moonIcon}
            </button>
          </div>
        </header>
        <main id="main" tabindex="-1">
          ${this.#problem ?? nothing}
          ${ready && !known ? this.#nobody() : nothing}
          <div id="views" ?hidden=${!known}></div>
        </main>`,
      document.body,
    );
    if (known) this.#show(current);
    // Whoever has to give a key begins there, also when it was asked for in the middle of something.
    else document.querySelector("input[name=key]")?.focus();
  }

  #whose() {
    const { user, agent } = this.#session;
    const whose = user ? (agent ? `${user} · ${agent}` : user) : "nobody yet";
    return html`<button type="button" class="whose" aria-label="Whose memories: ${whose}. Change"
      @click=${() => this.#chooseScope()}>${personIcon}<span>${whose}</span></button>`;
  }

  #nobody() {
    return html`<div class="door card">
      <h1>Whose memories?</h1>
      <p class="muted">This key reaches many users. Name the one to look at.</p>
      <button type="button" class="primary" @click=${() => this.#chooseScope()}>Choose a user</button>
    </div>`;
  }

  /** Show a view, made when it is first looked at; the others keep what they hold. */
  #show({ name, make }) {
    if (!this.#views.has(name)) {
      const root = document.createElement("section");
      document.getElementById("views").append(root);
      this.#views.set(name, { root, view: make(root, { api: this.#api, model: this.#model }) });
    }
    for (const [each, { root }] of this.#views) root.hidden = each !== name;
    this.#views.get(name).view.show();
  }
}

/** Move the focus without touching the address, which names the view. */
function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

new App().start();
