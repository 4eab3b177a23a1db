// The caption explorer and the ask widget: one front for a running kernel and for a page without one.
// It speaks to a model that has `send(question)` and `on("msg:custom", hear)`: that of anywidget, or
// `still(payload)`, which answers from what was stored. All that is shown goes in as text, never as markup.

const KERNEL = "needs a kernel: run this notebook in Jupyter or Colab";
const LARGEST = 8e6; // bytes of a picture that is sent to the kernel
const NOISES = { none: "none", blur: "blur", dropout: "lose parts", wrong: "wrong names", noise: "noise" };
const LOOK = [213, 94, 0]; // colour of where it looked
let made = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const button = (label, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, label);
const heading = (text) => make("p", { class: "mmfw-head" }, text);
const percent = (p) => (p >= 0.0995 ? Math.round(100 * p) : p >= 0.001 ? (100 * p).toFixed(1) : "< 0.1") + " %";
// A word, a number and a bar of some length, 0 to 1.
function scored(text, number, length) {
  const bar = make("span", { class: "mmfw-bar", "aria-hidden": "true" });
  bar.style.width = `${100 * length}%`;
  return [make("span", { class: "mmfw-text" }, text), make("span", { class: "mmfw-p" }, number), bar];
}
const keyOf = (picture, on) => picture.maps.map((m) => m.expert).filter((e) => on.has(e)).join("+");

// Arrow keys move among the buttons of a group.
function arrows(group) {
  group.addEventListener("keydown", (event) => {
    const all = [...group.querySelectorAll("button:not([disabled])")];
    const now = all.indexOf(event.target);
    const to = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1,
      Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || now < 0) return;
    event.preventDefault();
    event.stopPropagation();
    all[Math.min(Math.max(to, 0), all.length - 1)].focus();
  });
  return group;
}

// A model without a kernel.
function still(payload) {
  const heard = new Set();
  const answer = (question) => {
    if (question.ask === "front") return { front: payload, live: false };
    const picture = payload.pictures[question.picture];
    const found = payload.stored[question.picture][keyOf(picture, new Set(question.experts))];
    if (!found || question.prefix?.length) return { error: `This ${KERNEL}.` };
    return question.ask === "write" ? { tree: found } : { answer: found[question.stored] };
  };
  return {
    on: (_, hear) => heard.add(hear),
    off: (_, hear) => heard.delete(hear),
    send: (q) => heard.forEach((hear) => hear({ ...answer(q), view: q.view, number: q.number })),
  };
}

function render({ model, el }) {
  const view = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}-${made++}`;
  const id = (name) => `mmfw-${view}-${name}`;
  const status = make("p", { class: "mmfw-status", role: "status", "aria-live": "polite" });
  const alarm = make("p", { class: "mmfw-alarm", role: "alert" });
  const root = make("div", { class: "mmfw" });
  el.append(root);
  let data = null, live = false, number = 0;
  const waiting = new Map();
  const state = { picture: 0, on: new Set(), noise: "none", amount: 0.5, spoils: "all", seed: 0,
    tree: null, path: [], shown: 0, chosen: 0, stored: 0, own: null };

  // Asking the model. A reply that comes after a newer question of its kind is dropped.
  function ask(question, then, buffers) {
    const mine = ++number;
    for (const [old, one] of waiting) if (one.kind === question.ask) waiting.delete(old);
    waiting.set(mine, { kind: question.ask, then });
    root.setAttribute("aria-busy", "true");
    model.send({ ...question, view, number: mine }, undefined, buffers);
  }
  function hear(reply) {
    if (!reply || reply.view !== view || !waiting.has(reply.number)) return;
    const { then } = waiting.get(reply.number);
    waiting.delete(reply.number);
    if (!waiting.size) root.removeAttribute("aria-busy");
    alarm.textContent = reply.error ?? "";
    if (reply.error) status.textContent = "";
    else then(reply);
  }
  model.on("msg:custom", hear);
  const picture = () => data.pictures[state.picture];
  const experts = () => picture().maps.map((map) => map.expert).filter((name) => state.on.has(name));
  const noise = () => state.noise === "none" || !picture().scene ? null
    : { kind: state.noise, amount: state.amount, experts: state.spoils === "all" ? experts() : [state.spoils] };
  const asked = () => ({ picture: picture().number, experts: experts(), noise: noise() });

  // Parts of the page
  const pictures = arrows(make("div", { class: "mmfw-row", role: "group", "aria-label": "Pictures" }));
  const note = make("p", { class: "mmfw-note" });
  const maps = make("div", { class: "mmfw-maps", role: "group", "aria-label": "Experts" });
  const why = make("p", { class: "mmfw-note", id: id("why") });
  const spoiling = make("div", { class: "mmfw-row", role: "group", "aria-label": "Noise on the maps" });
  const writing = make("div", { class: "mmfw-row", role: "group", "aria-label": "How it is written" });
  const words = arrows(make("div", { class: "mmfw-words", role: "group", "aria-label": "Caption" }));
  const choices = arrows(make("ol", { class: "mmfw-list" }));
  const choicesHead = heading("Next words");
  const where = make("p", { class: "mmfw-note" });
  const image = make("img", { class: "mmfw-image" });
  const patches = make("canvas", { class: "mmfw-patches", "aria-hidden": "true" });
  const latents = make("canvas", { class: "mmfw-latents", height: 1, "aria-hidden": "true" });
  const questions = make("div", { class: "mmfw-row", role: "group", "aria-label": "Question" });
  const answers = make("ol", { class: "mmfw-list" });
  const said = make("p", { class: "mmfw-said" });
  const steps = make("div", { class: "mmfw-row", role: "group", "aria-label": "Writing" },
    button("Start over", () => show(0)), button("Next word", () => show(state.shown + 1)),
    button("Whole caption", () => show(state.path.length)));

  function control(label, input, locked = !live) {
    if (locked) { input.disabled = true; input.setAttribute("aria-describedby", id("why")); }
    return make("label", { class: "mmfw-control" }, make("span", {}, label), input);
  }
  function select(pairs, value, onchange) {
    const input = make("select", { onchange: () => onchange(input.value) },
      ...pairs.map(([key, text]) => make("option", { value: key }, text)));
    input.value = value;
    return input;
  }
  function range(low, high, step, value, onchange) {
    const out = make("output", {}, String(value));
    const input = make("input", { type: "range", min: low, max: high, step, value,
      oninput: () => { out.textContent = input.value; }, onchange: () => onchange(Number(input.value)) });
    return [input, out];
  }
  const slider = (label, [input, out], locked) => // a number stays beside its control
    make("span", { class: "mmfw-slider" }, control(label, input, locked), out);

  function build() {
    const seen = make("div", {}, heading(data.kind === "ask" ? "Picture" : "Where it looked"),
      make("div", { class: "mmfw-frame" }, image, patches), ...(data.kind === "ask" ? [] : [latents, where]));
    const right = data.kind === "ask"
      ? make("div", {}, heading("Question"), questions, said, answers, make("p", { class: "mmfw-note" },
        "Score: minus the mean loss of an answer's tokens; nearer to 0 is better. Bars: exp(score - best)."))
      : make("div", {}, heading("Caption"), words, steps, choicesHead, choices, writing);
    root.replaceChildren(heading(data.kind === "ask" ? "Ask about a picture" : "Caption explorer"), pictures,
      note, why, make("div", { class: "mmfw-columns" }, seen, right), status, alarm,
      heading("What the experts say"), maps, spoiling);
    const w = { ...data.writing };
    state.writing = w;
    const again = button("Draw again", () => { w.seed += 1; run(); });
    const lock = () => { again.disabled = !live || w.temperature === 0; }; // at 0 nothing is drawn
    const set = (name) => (value) => { w[name] = Number(value); lock(); run(); };
    if (!live) again.setAttribute("aria-describedby", id("why"));
    lock();
    const { beams, length: tokens, temperature } = data.limits;
    const length = range(...tokens, 1, w.length, set("length"));
    const heat = range(...temperature, 0.1, w.temperature, set("temperature"));
    const several = Array.from({ length: beams[1] }, (_, n) => [n + 1, n + 1]);
    writing.replaceChildren(
      control("Beams", select(several, w.beams, set("beams"))),
      slider("Most tokens", length), slider("Temperature", heat), again);
    const stored = select(data.questions.map((q, n) => [n, q]), 0,
      (value) => { state.stored = Number(value); state.own = null; run(); });
    const own = make("input", { type: "text", placeholder: "your own question" });
    const post = () => {
      const question = own.value; // asked again, once it has been answered, as experts and pictures change
      ask({ ask: "answer", question, ...asked() }, (reply) => {
        state.own = question;
        stored.selectedIndex = -1; // so that any stored question can be chosen again
        answered(reply);
      });
    };
    own.addEventListener("keydown", (event) => { if (event.key === "Enter") post(); event.stopPropagation(); });
    const go = button("Ask", post, { disabled: !live });
    questions.replaceChildren();
    if (data.questions.length) questions.append(control("Ask", stored, false));
    questions.append(control("or your own", own), go);
    if (!live) go.setAttribute("aria-describedby", id("why"));
    pick(0);
  }

  function pick(which) {
    for (const [old, one] of waiting) if (one.kind === "maps") waiting.delete(old); // of noise that is gone
    if (!waiting.size) root.removeAttribute("aria-busy");
    for (const each of data.pictures) each.maps = each.clean ?? each.maps;
    state.picture = which;
    state.on = new Set(every());
    state.noise = "none";
    state.spoils = "all";
    drawPictures();
    drawExperts();
    run();
  }
  function drawPictures() {
    const upload = make("input", { type: "file", accept: "image/*", onchange: () => send(upload.files[0]) });
    pictures.replaceChildren(...data.pictures.map((each, n) =>
      make("button", { type: "button", class: "mmfw-pick", onclick: () => { pick(n); pictures.children[n].focus(); },
        "aria-pressed": String(n === state.picture) }, make("img", { src: each.image, alt: "" }),
      make("span", {}, each.name))), control("Your own picture", upload));
    image.src = picture().image;
    image.alt = picture().alt;
    note.textContent = picture().note || picture().alt;
  }
  function send(file) {
    if (!file) return;
    if (file.size > LARGEST) {
      alarm.textContent = `${file.name} has ${(file.size / 1e6).toFixed(0)} MB: choose a file below ${LARGEST / 1e6} MB.`;
      return;
    }
    status.textContent = "Reading the picture.";
    file.arrayBuffer().then((bytes) => ask({ ask: "upload", name: file.name }, (reply) => {
      data.pictures.push(reply.picture);
      pick(data.pictures.length - 1);
    }, [bytes]));
  }

  // Without a kernel only all experts, none, and all but one are stored.
  function allowed(next) {
    const all = picture().maps.length;
    return live || [all, all - 1, 0].includes(next.size);
  }
  function turn(next) {
    state.on = next;
    markExperts();
    if (noise()) spoil(); else run();
  }
  const every = () => picture().maps.map((map) => map.expert);
  function without(expert) {
    const next = new Set(state.on);
    if (!next.delete(expert)) next.add(expert);
    return next;
  }
  function drawExperts() {
    const cards = picture().maps.map(({ expert, label, says, image }) => make("label", { class: "mmfw-map" },
      make("img", { src: image, alt: "" }),
      make("span", { class: "mmfw-name" },
        make("input", { type: "checkbox", "data-turn": expert, onchange: () => turn(without(expert)) }), " ", label),
      make("span", { class: "mmfw-says" }, says)));
    const both = make("div", { class: "mmfw-row mmfw-wide" },
      button("All on", () => turn(new Set(every())), { "data-all": "on" }),
      button("All off", () => turn(new Set()), { "data-all": "off" }));
    maps.replaceChildren(...(cards.length ? [both, ...cards]
      : [make("p", { class: "mmfw-note mmfw-wide" }, "There are no maps of this picture.")]));
    markExperts();
    why.textContent = live
      ? (picture().scene ? "" : "Noise is made for the maps of generated scenes; this picture is none.")
      : `Stored in this page: all experts, none, and each one left out. What is grey ${KERNEL}.`;
    const fixed = !live || !picture().scene;
    const amount = range(0, 1, 0.1, state.amount, (value) => { state.amount = value; spoil(); });
    spoiling.replaceChildren(
      control("Noise", select(Object.entries(NOISES), state.noise, (v) => { state.noise = v; spoil(); }), fixed),
      slider("Amount", amount, fixed),
      control("On", select([["all", "all that are on"], ...picture().maps.map((m) => [m.expert, m.label])],
        state.spoils, (v) => { state.spoils = v; spoil(); }), fixed));
  }
  function markExperts() {
    for (const box of maps.querySelectorAll("[data-turn]")) {
      const expert = box.dataset.turn, locked = !allowed(without(expert));
      box.checked = state.on.has(expert);
      box.disabled = locked;
      if (locked) box.setAttribute("aria-describedby", id("why")); else box.removeAttribute("aria-describedby");
      box.closest("label").classList.toggle("mmfw-off", !box.checked);
    }
    for (const one of maps.querySelectorAll("[data-all]")) {
      one.setAttribute("aria-pressed", String(state.on.size === (one.dataset.all === "on" ? every().length : 0)));
    }
  }
  function spoil() {
    const spoilt = picture();
    ask({ ask: "maps", ...asked() }, (reply) => {
      spoilt.clean ??= spoilt.maps;
      spoilt.maps = reply.maps;
      if (spoilt === picture()) [...maps.querySelectorAll("label")].forEach((card, n) => {
        card.querySelector("img").src = reply.maps[n].image;
        card.querySelector(".mmfw-says").textContent = reply.maps[n].says;
      });
    });
    run();
  }

  function run(prefix = [], then = () => show(state.path.length)) {
    if (data.kind === "ask") {
      const question = state.own ?? data.questions[state.stored];
      if (question !== undefined) ask({ ask: "answer", question, stored: state.stored, ...asked() }, answered);
      return;
    }
    if (live) status.textContent = "Writing.";
    ask({ ask: "write", writing: state.writing, prefix, ...asked() }, (reply) => {
      const tree = state.tree = reply.tree;
      tree.bytes = Uint8Array.from(atob(tree.looks), (letter) => letter.charCodeAt(0));
      follow([]);
      then();
    });
  }

  // A path is a list of [node, choice]; it goes on with what was taken at each node.
  function follow(begin) {
    const { nodes } = state.tree;
    const path = [...begin];
    let node = path.length ? nodes[path.at(-1)[0]][1][path.at(-1)[1]][2] : 0;
    while (node >= 0) {
      path.push([node, nodes[node][0]]);
      node = nodes[node][1][nodes[node][0]][2];
    }
    state.path = path;
  }
  const tokenAt = (n) => { const [node, choice] = state.path[n]; return state.tree.nodes[node][1][choice]; };
  const wordOf = (token) => (token === state.tree.end ? ["(end)", 0] : state.tree.words[token]);
  function caption() {
    let text = data.prompt;
    for (let n = 0; n < state.shown; n++) {
      const [token] = tokenAt(n), [word, glued] = wordOf(token);
      if (token !== state.tree.end) text += (glued || /^[,.;:!?]$/.test(word) ? "" : " ") + word;
    }
    return text;
  }
  function show(count, chosen = count) {
    if (!state.path.length) return; // nothing is written yet
    state.shown = Math.min(Math.max(count, 0), state.path.length);
    state.chosen = Math.min(chosen, state.path.length - 1);
    drawWords();
    status.textContent = `${caption()}${state.shown < state.path.length ? " ..." : "."}`;
    drawChoices();
  }
  function drawWords() {
    const buttons = [], focused = document.activeElement;
    for (let n = 0; n < state.shown; n++) {
      const [token, p] = tokenAt(n), [word, glued] = wordOf(token);
      buttons.push(button(word, () => { state.chosen = n; mark(); drawChoices(); }, {
        class: glued ? "mmfw-word mmfw-glued" : "mmfw-word", "aria-label": `${word}, ${percent(p)}`,
        onpointerenter: () => look(n), onfocus: () => look(n), onpointerleave: () => look(state.chosen) }));
    }
    words.replaceChildren(make("span", { class: "mmfw-prompt" }, data.prompt), ...buttons);
    mark();
    steps.children[1].disabled = state.shown >= state.path.length;
    steps.children[2].disabled = state.shown >= state.path.length;
    if (root.contains(focused) && focused.disabled) steps.children[0].focus();
  }
  function mark() {
    [...words.querySelectorAll("button")].forEach((one, n) => one.setAttribute("aria-pressed", String(n === state.chosen)));
  }
  function drawChoices() {
    const n = state.chosen, [node, taken] = state.path[n], [before] = n ? wordOf(tokenAt(n - 1)[0]) : [data.prompt];
    choicesHead.textContent = `After "${before}" the model weighed up`;
    const some = state.tree.nodes[node][1];
    const most = Math.max(...some.map(([, p]) => p), 1e-9);
    choices.setAttribute("aria-label", choicesHead.textContent);
    choices.replaceChildren(...some.map(([token, p, next], c) => {
      const [word] = wordOf(token), locked = next === -1 && !live;
      return make("li", {}, make("button", { type: "button", class: "mmfw-choice", "data-choice": c,
        onclick: () => choose(n, c), disabled: locked, "aria-describedby": locked ? id("why") : null,
        "aria-pressed": String(c === taken && n < state.shown), "aria-label": `${word}, ${percent(p)}` },
      ...scored(word, percent(p), p / most)));
    }));
    look(n);
  }
  // While the caption is being written word by word it stops behind the chosen word, else it is written out.
  function choose(n, c) {
    const [node] = state.path[n], [token, , next] = state.tree.nodes[node][1][c];
    const stepping = state.shown < state.path.length;
    if (next === -1) {
      const before = state.path.slice(0, n).map((_, k) => tokenAt(k)[0]);
      run([...before, token], () => settle(n, stepping));
      return;
    }
    follow([...state.path.slice(0, n), [node, c]]);
    settle(n, stepping);
  }
  function settle(n, stepping) {
    const now = document.activeElement, mine = now === document.body || root.contains(now);
    if (stepping) show(n + 1); else show(state.path.length, n);
    if (mine) (choices.querySelector('[aria-pressed="true"]') ?? choices.querySelector("button"))?.focus();
  }

  // Shares of patches, then of latents, each drawn from its own least to its own largest.
  function look(n) {
    if (!state.path[n]) return;
    const { bytes, width } = state.tree, row = state.path[n][0] * width;
    let shares = [...bytes.subarray(row, row + width)].map((byte) => (byte / 255) ** 2);
    const sum = shares.reduce((a, b) => a + b, 0);
    shares = shares.map((share) => share / sum);
    const { grid } = data, here = shares.slice(0, grid * grid), rest = shares.slice(grid * grid);
    paint(patches, here, grid, 0.8);
    paint(latents, rest, rest.length, 1);
    const [low, high] = [Math.min(...here), Math.max(...here)];
    latents.hidden = !rest.length;
    const best = here.indexOf(high), onPicture = here.reduce((a, b) => a + b, 0);
    const word = n < state.shown ? `"${wordOf(tokenAt(n)[0])[0]}"` : "the next word";
    where.textContent = `When it chose ${word}: ${percent(onPicture)} on the picture (a patch: `
      + `${percent(low)} where it is clear to ${percent(high)} where it is darkest, in row ${Math.floor(best / grid) + 1}, `
      + `column ${(best % grid) + 1} of ${grid}), `
      + (rest.length ? `${percent(1 - onPicture)} on the ${rest.length} latents of the experts, the strip below. `
        : "no experts, so no latents. ") + "Cross-attention, mean over heads and layers.";
  }
  function paint(canvas, values, columns, strongest) {
    canvas.width = Math.max(columns, 1);
    canvas.height = Math.max(1, Math.ceil(values.length / Math.max(columns, 1)));
    const pen = canvas.getContext("2d"), cells = pen.createImageData(canvas.width, canvas.height);
    const low = Math.min(...values), span = Math.max(...values) - low || 1;
    values.forEach((value, n) => cells.data.set([...LOOK, Math.round(255 * strongest * (value - low) / span)], 4 * n));
    pen.putImageData(cells, 0, 0);
  }

  function answered({ answer }) {
    said.textContent = `Asked: ${answer.question}`;
    const best = answer.ranked[0][1];
    status.textContent = `${answer.question} ${answer.ranked[0][0]}.`;
    answers.replaceChildren(...answer.ranked.map(([text, score]) =>
      make("li", { class: "mmfw-choice" }, ...scored(text, score.toFixed(2), Math.exp(score - best)))));
  }

  ask({ ask: "front" }, (reply) => { data = reply.front; live = reply.live; build(); });
  return () => model.off("msg:custom", hear);
}

export default { render, still };
