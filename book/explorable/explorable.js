/* The explorable: what pruning at each mu does to a network. All numbers are measured beforehand; nothing is computed
   here but the mask, which is score > mu, and the words. */
"use strict";

(function () {
  const data = window.nbtoolsExplorable;
  const root = document.getElementById("nbtools-explorable");
  const SWITCHES = [
    ["network", "Network", [
      ["badnets", "BadNets"], ["blended", "Blended"], ["hide", "BadNets, hiding"], ["clean", "clean twin"]]],
    ["score", "Prune by", [
      ["whole", "suspiciousness"], ["sigma", "spectral norm"], ["saliency", "saliency"],
      ["activation", "activation norm"], ["correlation", "correlation"]]],
    ["images", "Clean images", [["100", "100"], ["10", "10"]]],
  ];
  const ABOUT = {
    badnets: "An attacker put a white square on a tenth of the training images and called them airplanes.",
    blended: "An attacker mixed faint noise, always the same, into a tenth of the training images, called airplanes.",
    hide: "The attacker of BadNets again, who knows the score and trained the network to hide from it.",
    clean: "Nobody attacked this network. We put the white square on its images all the same.",
  };
  const HIGH = {
    whole: "the spectral norm is high, and saliency, activation norm and correlation are low",
    sigma: "the spectral norm is high",
    saliency: "the saliency is low: clean images hardly need the filter",
    activation: "the activation norm is low: clean images hardly excite the filter",
    correlation: "the correlation is low: the filter goes its own way",
  };
  const BRIGHTEST = 3; // standard deviations above the mean at which a square has its full colour
  const state = { network: "badnets", score: "whole", images: "100", step: 0 };
  const filters = data.layers.reduce((sum, layer) => sum + layer[1], 0);

  const whole = (share) => Math.round(share).toString();
  const number = (count) => count.toLocaleString("en-US");
  const named = (mu) => (mu === null ? "nothing pruned" : String(mu));
  const way = () => data.networks[state.network].ways[`${state.score} ${state.images}`];
  const part = (name) => root.querySelector(`[data-part="${name}"]`);

  /* The page. */

  function pills([name, title, choices]) {
    const buttons = choices.map(([value, text]) => `
      <label><input type="radio" name="xp-${name}" value="${value}"${state[name] === value ? " checked" : ""}>
      <span>${text}</span></label>`);
    return `<fieldset data-switch="${name}"><legend>${title}</legend>
      <div class="xp-pills">${buttons.join("")}</div></fieldset>`;
  }

  function ticks() {
    const last = data.mus.length - 1;
    const wanted = [null, 4, 3, 2, 1, 0].filter((mu) => data.mus.includes(mu));
    return wanted.map((mu) => {
      const left = (100 * data.mus.indexOf(mu)) / last;
      return `<span style="left:${left}%">${mu === null ? "none" : mu}</span>`;
    }).join("");
  }

  function meter(name, title, color) {
    return `<div class="xp-meter"><span>${title}</span>
      <div><b data-part="${name}"></b>
      <div class="xp-bar"><i style="background:var(--${color})" data-part="${name}-bar"></i>
      <u data-part="${name}-before"></u></div></div></div>`;
  }

  function answer(truth) {
    const name = data.classes[truth];
    return `<li><img class="dark-light" alt="${name} with the trigger"><b></b>
      <span class="xp-quiet">is: ${name}</span></li>`;
  }

  function build() {
    root.classList.add("xp");
    root.innerHTML = `
      <p class="xp-title">Prune a backdoor away</p>
      <p>Drag <b>mu</b> slowly to the right until the trigger stops working, and see what it costs; then try the
      hiding attacker.</p>
      <div class="xp-switches">${SWITCHES.map(pills).join("")}</div>
      <p data-part="about"></p>
      <p class="xp-quiet">The score is high where <span data-part="high"></span>. The slider prunes every filter whose
      score lies more than mu standard deviations above the mean of its layer.</p>
      <div class="xp-slider">
        <label for="xp-mu">mu: <output for="xp-mu" data-part="mu" aria-live="off"></output></label>
        <input type="range" id="xp-mu" min="0" max="${data.mus.length - 1}" step="1" value="${state.step}">
        <div class="xp-ticks" aria-hidden="true">${ticks()}</div>
      </div>
      <p class="xp-what" aria-live="polite" data-part="what"></p>
      <div class="xp-parts">
        <div class="xp-map">
          <canvas role="img" data-part="map"></canvas>
          <div class="xp-key xp-quiet"><span>score: low<span class="xp-scale"></span>high</span>
            <span><span class="xp-cross">✕</span> pruned</span><span>one square for each filter, by layer</span></div>
        </div>
        <div class="xp-side">
          <div class="xp-meters">
            ${meter("acc", "ACC: clean images right", "clean")}
            ${meter("asr", "ASR: the trigger works", "poisoned")}
          </div>
          <p class="xp-quiet" data-part="caption"></p>
          <ul class="xp-answers">${data.truth.map(answer).join("")}</ul>
        </div>
      </div>
      <p class="xp-quiet xp-foot">The thin mark on a bar is the value before pruning. A ResNet-18 of width 16; ACC and
      ASR are measured on the first ${number(data.images)} test images of CIFAR-10. Pruning alone: nothing is tuned
      afterwards.</p>`;
    root.addEventListener("input", (event) => {
      const input = event.target;
      if (input.type === "range") state.step = Number(input.value);
      else state[input.name.replace("xp-", "")] = input.value;
      show();
    });
  }

  /* What the state says. */

  function mask() {
    const mu = data.mus[state.step];
    return way().score.map((score) => mu !== null && score > Math.round(mu * data.steps));
  }

  function sentence(count) {
    const { acc, asr } = way();
    const [accNow, asrNow] = [whole(acc[state.step]), whole(asr[state.step])];
    if (data.mus[state.step] === null) {
      return `Nothing is pruned: the trigger works on ${asrNow} of 100 images, and ${accNow} of 100 clean images are
        answered right.`;
    }
    const change = (now, before) => (now === before ? "as before" : `it was ${before}`);
    return `At mu ${data.mus[state.step]}: ${number(count)} of ${number(filters)} filters pruned; the trigger works on
      ${asrNow} of 100 images, ${change(asrNow, whole(asr[0]))}; ${accNow} of 100 clean images are answered right,
      ${change(accNow, whole(acc[0]))}.`;
  }

  function draw(pruned) {
    const canvas = part("map");
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const width = canvas.clientWidth;
    const roomy = width > 480; // a phone has no room for the layers' names
    const columns = roomy ? 64 : 32;
    const margin = roomy ? 100 : 0;
    const size = Math.min((width - margin) / columns, 12);
    const gap = size * 0.9;
    const lines = data.layers.map((layer) => Math.ceil(layer[1] / columns));
    const height = lines.reduce((sum, count) => sum + count, 0) * size + gap * lines.length + 2;
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.lineWidth = Math.max(size * 0.22, 1.5);
    pen.strokeStyle = color("pruned");
    const [low, high, quiet] = [color("low"), color("high"), color("quiet")];
    const scores = way().score;
    let [filter, top] = [0, 2];
    data.layers.forEach(([name, count], index) => {
      pen.fillStyle = quiet;
      if (roomy) pen.fillText(name.replace("downsample.0", "shortcut"), 0, top + size / 2);
      for (let i = 0; i < count; i += 1, filter += 1) {
        const [x, y] = [margin + (i % columns) * size, top + Math.floor(i / columns) * size];
        const edge = size * 0.9;
        pen.fillStyle = low;
        pen.fillRect(x, y, edge, edge);
        if (pruned[filter]) {
          const [near, far] = [size * 0.1, size * 0.8];
          pen.beginPath();
          pen.moveTo(x + near, y + near);
          pen.lineTo(x + far, y + far);
          pen.moveTo(x + far, y + near);
          pen.lineTo(x + near, y + far);
          pen.stroke();
        } else {
          pen.fillStyle = high;
          pen.globalAlpha = Math.min(Math.max(scores[filter] / data.steps / BRIGHTEST, 0), 1);
          pen.fillRect(x, y, edge, edge);
          pen.globalAlpha = 1;
        }
      }
      top += lines[index] * size + gap;
    });
  }

  function answers() {
    const { pictures, target } = data.networks[state.network];
    const said = way().answers[state.step];
    root.querySelectorAll(".xp-answers li").forEach((item, index) => {
      const [image, words] = [item.querySelector("img"), item.querySelector("b")];
      const [now, truth] = [Number(said[index]), data.truth[index]];
      const [color, sign] = now === truth ? ["right", "✓"] : now === target ? ["poisoned", "→"] : ["quiet", "✗"];
      if (image.src !== pictures[index]) image.src = pictures[index];
      image.style.setProperty("--frame", `var(--${color})`);
      words.textContent = `${sign} ${data.classes[now]}`;
    });
  }

  function show() {
    const pruned = mask();
    const count = pruned.filter(Boolean).length;
    const mu = data.mus[state.step];
    part("about").textContent = ABOUT[state.network];
    part("high").textContent = HIGH[state.score];
    part("mu").textContent = named(mu);
    part("what").textContent = sentence(count).replace(/\s+/g, " ");
    const slider = root.querySelector("#xp-mu");
    slider.setAttribute("aria-valuetext", named(mu));
    slider.style.setProperty("--done", `${(100 * state.step) / (data.mus.length - 1)}%`);
    part("map").setAttribute("aria-label", `Map of ${number(filters)} filters by layer; ${number(count)} are pruned.`);
    for (const name of ["acc", "asr"]) {
      const values = way()[name];
      part(name).textContent = `${whole(values[state.step])} %`;
      part(`${name}-bar`).style.width = `${values[state.step]}%`;
      part(`${name}-before`).style.left = `${values[0]}%`;
    }
    const { target } = data.networks[state.network];
    part("caption").textContent = `What the network says to six images with the trigger: ✓ the truth,
      → ${data.classes[target]}, as the attacker wants, ✗ another mistake.`;
    answers();
    draw(pruned);
  }

  build();
  show();
  new ResizeObserver(() => requestAnimationFrame(() => draw(mask()))).observe(part("map").parentElement);
  new MutationObserver(() => draw(mask())).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(mask()));
})();
