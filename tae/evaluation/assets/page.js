"use strict";
/* The page of one evaluation or of a sweep's runs. Its data, written by tae/evaluation/page.py:
 *
 *   title, lead    text; facts, details: [[name, text], ...]; skipped: [text, ...]
 *   metrics        [{name, label, higher, digits, percent}]: the columns of numbers
 *   runs           [{label, href, note, metrics: {name: {mean, ci95, phases?}}, error, curve: [[step, PSNR], ...],
 *                    latents: what the charts of the latents report need, or null}]
 *   baseline       {name: {mean, ci95}} or null; advantage: the same, of a single run over it, or null
 *   settings       {rows: [[key, value of each run...], ...]} or null
 *   latents        [[name, text of each run...], ...]: the latents report
 *   rates          {models: [{run, rate, psnr}], floors: [{label, line, points: [[rate, PSNR], ...]}]} or null: numbers for each
 *                    value of a clip, against dB
 *   rows           [{key, frames, runs: [{name: value} or null for each run], baseline: {name: value} or null}]
 *   clips          [{name, key, fps, frames, video, height, width, pictures: [{label, run, x, y}], psnr: [[dB, ...] or null
 *                    for each run], baseline_psnr: [dB, ...], motion: {tpsnr, flicker: [[value of a step, ...] or null for
 *                    each run, the baseline last]}, latents: [{picture, channels, frames, height, width,
 *                    outliers} or null for each run]}]
 *
 * Every picture of a clip lies in one video, so that they cannot run apart: what is shown are parts of the same frame.
 */

const data = JSON.parse(document.getElementById("data").textContent);
const several = data.runs.length > 1;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;

/* ---------- small tools ---------- */

/** An element. Attributes that are functions become listeners; children are nodes or text, never markup. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const colour = (run) => `var(--run-${run % 8})`;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function number(value, metric, sign = false) {
  if (value == null) return "–";
  const text = metric.percent ? (100 * value).toFixed(metric.digits) + "%" : value.toFixed(metric.digits);
  return (sign && value > 0 ? "+" : "") + text.replace("-", "−");
}

const heading = (metric) => `${metric.label} ${metric.higher ? "↑" : "↓"}`;

function select(label, options, onchange) {
  const node = h("select", { change: () => onchange(Number(node.value)) });
  options.forEach((text, i) => node.append(h("option", { value: i }, text)));
  return { node, label: h("label", {}, label, node) };
}

/* ---------- the numbers ---------- */

/** Mean, interval and, on a common scale, the interval as a line with a dot; a narrow screen shows the column's name here. */
function cell(value, metric, scale, paint, column, sign = false) {
  if (value == null) return h("td", { "data-column": column }, h("span", { class: "soft" }, "–"));
  const interval = value.ci95 && `${number(value.ci95[0], metric, sign)} to ${number(value.ci95[1], metric, sign)}`;
  return h("td", { "data-column": column },
    h("span", { class: "value" }, number(value.mean, metric, sign)),
    interval && h("span", { class: "interval" }, interval),
    scale && whisker(value, scale, paint));
}

function whisker(value, [low, high], paint) {
  const x = (v) => 4 + (192 * (v - low)) / (high - low || 1);
  const [from, to] = value.ci95 || [value.mean, value.mean];
  return s("svg", { class: "whisker", viewBox: "0 0 200 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("line", { x1: 0, x2: 200, y1: 7, y2: 7, stroke: "var(--line)", "vector-effect": "non-scaling-stroke" }),
    s("line", { x1: x(from), x2: x(to), y1: 7, y2: 7, stroke: paint, "stroke-width": 3, "vector-effect": "non-scaling-stroke" }),
    s("line", { x1: x(value.mean), x2: x(value.mean), y1: 1, y2: 13, stroke: paint, "stroke-width": 3, "vector-effect": "non-scaling-stroke" }));
}

function scaleOf(values) {
  const ends = values.filter(Boolean).flatMap((value) => [value.mean, ...(value.ci95 || [])]);
  return ends.length > 1 && Math.max(...ends) > Math.min(...ends) ? [Math.min(...ends), Math.max(...ends)] : null;
}

function summary() {
  return several || !data.baseline ? summaryOfRuns() : summaryOfOne();
}

function summaryOfOne() {
  const [run] = data.runs;
  const names = ["metric", "model", "trilinear baseline", "difference, clip by clip"];
  const rows = data.metrics.map((metric) => {
    const [model, baseline] = [run.metrics[metric.name], data.baseline[metric.name]];
    const scale = scaleOf([model, baseline]);
    return h("tr", {},
      h("th", { scope: "row" }, heading(metric)),
      cell(model, metric, baseline && scale, colour(0), names[1]),
      cell(baseline, metric, scale, "var(--soft)", names[2]),
      cell(data.advantage && data.advantage[metric.name], metric, null, null, names[3], true));
  });
  return h("div", { class: "scroll" }, h("table", { id: "summary" },
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows)));
}

function summaryOfRuns() {
  const scales = Object.fromEntries(data.metrics.map(({ name }) =>
    [name, scaleOf([...data.runs.map((run) => run.metrics[name]), data.baseline && data.baseline[name]])]));
  const rows = data.runs.map((run, i) => h("tr", {},
    h("th", { scope: "row" }, swatch(i), run.href ? h("a", { href: run.href }, run.label) : run.label,
      run.note && h("div", { class: "soft small" }, `latents ${run.note}`),
      run.error && h("div", { class: "failed small" }, `failed: ${run.error}`)),
    ...data.metrics.map((metric) => cell(run.metrics[metric.name], metric, scales[metric.name], colour(i), heading(metric)))));
  if (data.baseline) {
    rows.push(h("tr", {}, h("th", { scope: "row" }, swatch(null), "trilinear baseline"),
      ...data.metrics.map((metric) => cell(data.baseline[metric.name], metric, scales[metric.name], "var(--soft)", heading(metric)))));
  }
  return h("div", { class: "scroll" }, h("table", { id: "summary" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "run"),
      ...data.metrics.map((metric) => h("th", { scope: "col" }, heading(metric))))), h("tbody", {}, ...rows)));
}

function swatch(run) {
  const style = `border-color: ${run == null ? "var(--soft)" : colour(run)}`;
  return h("span", { class: `swatch ${run == null ? "dashed" : ""}`, style, "aria-hidden": "true" });
}

function settings() {
  return h("div", { class: "scroll" }, h("table", { id: "settings" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"),
      ...data.runs.map((run) => h("th", { scope: "col", class: "text" }, run.label)))),
    h("tbody", {}, ...data.settings.rows.map(([key, ...values]) => h("tr", {}, h("th", { scope: "row" }, key),
      ...values.map((value) => h("td", { class: "text" }, value == null ? "–" : value)))))));
}

/* ---------- charts ---------- */

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { at: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** Lines over x, or, where a series has `dots`, its points. `onpick(x)` makes it a place to choose x from; `mark(x)` draws
 * the chosen one. `whole` writes whole numbers alone on the axis; `log` makes it logarithmic, in steps of 1, 2, 5, 10. */
function chart(label, series, { xLabel, onpick = null, whole = true, log = false }) {
  const box = h("div", { class: `chart ${onpick ? "" : "still"}` });
  const points = series.flatMap((line) => line.points);
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const scale = log ? Math.log10 : (v) => v;
  const widen = log ? 1.25 : 1;
  const [x0, x1] = [Math.min(...xs) / widen, Math.max(...xs) * widen];
  const pad = (Math.max(...ys) - Math.min(...ys)) * 0.06 || 0.5;
  const [y0, y1] = [Math.min(...ys) - pad, Math.max(...ys) + pad];
  const sides = ticks(y0, y1, 5);
  const height = 230, left = 18 + 7 * Math.max(...sides.at.map((v) => axisText(v, sides.digits).length)), right = 12, top = 10, bottom = 38;
  let cursor = null, marked = null, width = 0;
  const x = (v) => left + ((width - left - right) * (scale(v) - scale(x0))) / (scale(x1) - scale(x0) || 1);
  const y = (v) => height - bottom - ((height - top - bottom) * (v - y0)) / (y1 - y0);

  function draw() {
    width = box.clientWidth;
    if (!width) return;
    const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const horizontal = log ? powers(x0, x1, width / 60) : ticks(x0, x1, Math.max(2, Math.min(8, width / 80)));
    for (const v of sides.at) {
      svg.append(s("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "var(--line)" }),
        s("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, axisText(v, sides.digits)));
    }
    for (const v of horizontal.at) {
      if (whole && !Number.isInteger(v)) continue;
      const text = log || whole ? String(v) : v.toFixed(horizontal.digits);
      svg.append(s("text", { x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, text));
    }
    svg.append(s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
    for (const line of series) {
      if (line.dots) {
        for (const [px, py] of line.points) svg.append(s("circle", { cx: x(px), cy: y(py), r: 5, fill: line.colour }, s("title", {}, `${line.label}: ${py.toFixed(2)}`)));
        continue;
      }
      const path = line.points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
      svg.append(s("path", { d: path, fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-linejoin": "round",
        "stroke-dasharray": line.dashed ? "5 4" : "none" }));
      if (line.points.length === 1) svg.append(s("circle", { cx: x(line.points[0][0]), cy: y(line.points[0][1]), r: 3.5, fill: line.colour }));
    }
    cursor = s("line", { y1: top, y2: height - bottom, stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
    svg.append(cursor);
    if (onpick) {
      const pick = (event) => onpick(Math.round(clamp(x0 + ((event.offsetX - left) / (width - left - right)) * (x1 - x0), x0, x1)));
      svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); pick(event); });
      svg.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
    }
    box.replaceChildren(svg);
    if (marked != null) mark(marked);
  }

  function mark(v) {
    marked = v;
    if (!cursor) return;
    cursor.setAttribute("x1", x(v));
    cursor.setAttribute("x2", x(v));
    cursor.setAttribute("visibility", "visible");
  }

  new ResizeObserver(() => { if (box.clientWidth !== width) draw(); }).observe(box);
  return { box, mark };
}

/** 1, 2 and 5 times each power of ten between two numbers, the powers alone where there is no room for more. */
function powers(low, high, room) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of [1, 2, 5]) {
      const value = Number(`${factor}e${power}`);
      if (value >= low && value <= high) found.push(value);
    }
  }
  const alone = found.filter((value) => Number.isInteger(Math.log10(value)));
  return { at: found.length > room && alone.length > 1 ? alone : found };
}

const axisText = (value, digits) => value.toFixed(digits).replace("-", "−");

/** A chart with its heading and, where there are several lines, their names. */
function figure(title, label, series, options) {
  const made = chart(label, series, options);
  return { node: h("figure", {}, h("h3", {}, title), made.box, series.length > 1 ? legend(series) : null), mark: made.mark };
}

function legend(series) {
  return h("div", { class: "legend" }, ...series.map((line) => h("span", {},
    h("span", { class: line.dots ? "dot" : `swatch ${line.dashed ? "dashed" : ""}`, style: `border-color: ${line.colour}` }), line.label)));
}

/* ---------- the clips ---------- */

function viewer(motion) {
  const video = h("video", { muted: true, playsinline: true, loop: true, preload: "auto", hidden: true });
  video.muted = true;
  const root = h("div", { class: "card", id: "viewer" }, video);
  let clip, frame = 0, pending = null, wipe = 0.5, gain = 4, a = 0, b = 1, latentRun = 0, ready = false;
  let canvases = [], psnrChart = null;

  /* What stays while clips change. */
  const picker = select("Clip", data.clips.map((item) => (/^clip\d+$/.test(item.name) ? item.key : `${item.name}: ${item.key}`)), show);
  picker.node.id = "clip";
  let captions = [], named = data.metrics[0];
  const ofClips = data.metrics.filter((metric) => data.rows.some((row) => row.runs.some((values) => values && values[metric.name] != null)));
  const metricChoice = select("Metric", ofClips.map((metric) => metric.label), (i) => { named = ofClips[i]; caption(); });
  metricChoice.node.id = "caption-metric";
  const play = h("button", { class: "primary", id: "play", click: toggle }, "Play");
  const back = h("button", { id: "back", "aria-label": "One frame back", click: () => step(-1) }, "◀ frame");
  const forward = h("button", { id: "forward", "aria-label": "One frame forward", click: () => step(1) }, "frame ▶");
  const slider = h("input", { type: "range", min: 0, value: 0, id: "frame", "aria-label": "Frame", input: () => { pause(); seek(Number(slider.value)); } });
  const readout = h("output", { class: "readout small", id: "readout", for: "frame" });
  const speeds = [0.1, 0.25, 0.5, 1, 2];
  const speed = select("Speed", speeds.map((v) => `${v}×`), (i) => { video.playbackRate = speeds[i]; });
  speed.node.value = 3;
  const status = h("p", { class: "status", role: "alert" });
  const pictures = h("div", { class: "pictures" });
  const difference = h("canvas", { id: "difference", role: "img", "aria-label": "Amplified difference" });
  const differenceCaption = h("span");
  const gainSlider = h("input", { type: "range", min: 1, max: 16, step: 1, value: gain, id: "gain", "aria-label": "Amplification of the difference", input: () => { gain = Number(gainSlider.value); draw(); } });
  const wipeCanvas = h("canvas", { id: "wipe", role: "img", "aria-label": "Wipe between two pictures" });
  const wipeSlider = h("input", { type: "range", min: 0, max: 100, step: 1, value: 50, id: "wipe-position", "aria-label": "Wipe position", input: () => setWipe(wipeSlider.value / 100) });
  const chooseA = select("left", [], (i) => { a = i; draw(); });
  const chooseB = select("right", [], (i) => { b = i; draw(); });
  chooseA.node.id = "left";
  chooseB.node.id = "right";
  const chartBox = h("div"), latentBox = h("div", { class: "latents" });
  const latentCanvas = h("canvas", { class: "pixels", id: "latents", role: "img", "aria-label": "Latent channels" });
  const mapCanvas = h("canvas", { class: "pixels", id: "outliers", role: "img", "aria-label": "Map of outliers" });
  const latentCaption = h("figcaption"), mapCaption = h("figcaption");
  const latentChoice = select("Latents of", data.runs.map((run) => run.label), (i) => { latentRun = i; loadLatents(); });
  const latentPicture = new Image();
  latentPicture.addEventListener("load", drawLatents);

  wipeCanvas.addEventListener("pointerdown", (event) => { wipeCanvas.setPointerCapture(event.pointerId); drag(event); });
  wipeCanvas.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  const drag = (event) => setWipe(event.offsetX / wipeCanvas.clientWidth);

  function setWipe(position) {
    wipe = clamp(position, 0, 1);
    wipeSlider.value = Math.round(100 * wipe);
    draw();
  }

  function show(index) {
    clip = data.clips[index];
    picker.node.value = index;
    frame = 0;
    pending = null;
    ready = false;
    status.textContent = "";
    video.pause();
    play.textContent = "Play"; // a video that is exchanged while it plays stops without saying so
    slider.max = clip.frames - 1;
    play.disabled = back.disabled = forward.disabled = slider.disabled = clip.frames < 2;
    const labels = clip.pictures.map((picture) => picture.label);
    a = clamp(several ? a : 0, 0, labels.length - 1);
    b = clamp(several ? b : 1, 0, labels.length - 1);
    for (const [choice, value] of [[chooseA, a], [chooseB, b]]) {
      choice.node.replaceChildren(...labels.map((text, i) => h("option", { value: i }, text)));
      choice.node.value = value;
    }
    canvases = clip.pictures.map((picture) => h("canvas", { role: "img", "aria-label": picture.label }));
    captions = clip.pictures.map(() => h("span", { class: "soft" }));
    caption();
    pictures.replaceChildren(...clip.pictures.map((picture, i) => h("figure", {}, canvases[i], h("figcaption", {},
      h("span", {}, picture.run == null || !several ? null : swatch(picture.run), picture.label), captions[i]))),
      h("figure", {}, difference, h("figcaption", {}, differenceCaption, gainSlider)));
    for (const canvas of [...canvases, difference, wipeCanvas]) [canvas.width, canvas.height] = [clip.width, clip.height];
    wipeCanvas.style.maxWidth = `calc(72vh * ${clip.width / clip.height})`;
    psnrChart = chartOfFrames();
    if (motion) motion.show(clip, (value) => { pause(); seek(value - 1); });
    const run = clip.latents[latentRun] ? latentRun : clip.latents.findIndex(Boolean);
    latentBox.hidden = run < 0;
    if (run >= 0) { latentRun = run; latentChoice.node.value = run; loadLatents(); }
    video.src = clip.video;
    video.playbackRate = speeds[Number(speed.node.value)];
    for (const row of document.querySelectorAll("tr[data-key]")) row.classList.toggle("shown", row.dataset.key === clip.key);
    note();
  }

  /** The chosen metric of each picture's whole clip. */
  function caption() {
    const row = data.rows.find((item) => item.key === clip.key);
    clip.pictures.forEach(({ run }, i) => {
      const value = run != null && row && row.runs[run] && named && row.runs[run][named.name];
      captions[i].textContent = run == null ? "" : value == null ? "" : `${named.label} ${number(value, named)}`;
    });
  }

  function chartOfFrames() {
    const line = (values) => values.map((value, i) => [i + 1, value]).filter(([, value]) => value != null);
    const series = clip.psnr.map((values, i) => values && { label: data.runs[i].label, colour: colour(i), points: line(values) }).filter(Boolean);
    series.push({ label: "trilinear baseline", colour: "var(--soft)", dashed: true, points: line(clip.baseline_psnr) });
    const made = chart("PSNR of each frame in dB", series, { xLabel: "frame", onpick: (value) => { pause(); seek(value - 1); } });
    chartBox.replaceChildren(made.box, legend(series));
    return made;
  }

  function toggle() {
    if (video.paused) video.play().catch(failed);
    else pause();
  }

  function pause() { video.pause(); }

  function step(count) {
    pause();
    seek((frame + count + clip.frames) % clip.frames);
  }

  /** Show a frame: to the middle of its time, where no rounding reaches its neighbours. */
  function seek(to) {
    frame = clamp(to, 0, clip.frames - 1);
    note();
    if (video.seeking) pending = frame;
    else video.currentTime = (frame + 0.5) / clip.fps;
  }

  video.addEventListener("seeked", () => {
    if (pending != null) { video.currentTime = (pending + 0.5) / clip.fps; pending = null; return; }
    draw();
    requestAnimationFrame(draw); // on a busy machine the new picture may come a moment after its event
  });
  video.addEventListener("timeupdate", () => { if (video.paused && !video.seeking) draw(); });
  video.addEventListener("loadeddata", () => { ready = true; seek(0); });
  video.addEventListener("play", () => { play.textContent = "Pause"; requestAnimationFrame(run); });
  video.addEventListener("pause", () => { play.textContent = "Play"; seek(frame); });
  video.addEventListener("error", failed);

  function failed() {
    status.textContent = `${clip.video} cannot be played by this browser (H.264 in MP4); the file is beside this page.`;
  }

  function run() {
    if (video.paused) return;
    frame = clamp(Math.floor(video.currentTime * clip.fps + 1e-3), 0, clip.frames - 1);
    note();
    draw();
    requestAnimationFrame(run);
  }

  function part(context, picture, x = 0) {
    const { width, height } = clip;
    if (x < width) context.drawImage(video, picture.x + x, picture.y, width - x, height, x, 0, width - x, height);
  }

  function draw() {
    if (!ready) return;
    canvases.forEach((canvas, i) => part(canvas.getContext("2d"), clip.pictures[i]));
    const [left, right] = [clip.pictures[a], clip.pictures[b]];
    let context = difference.getContext("2d");
    context.globalCompositeOperation = "copy";
    part(context, left);
    context.globalCompositeOperation = "difference";
    part(context, right);
    difference.style.filter = `brightness(${gain})`;
    differenceCaption.textContent = `difference of ${left.label} and ${right.label}, ×${gain}`;
    context = wipeCanvas.getContext("2d");
    part(context, left);
    const at = Math.round(wipe * clip.width);
    part(context, right, at);
    context.fillStyle = "#fff";
    context.fillRect(at - 1, 0, 2, clip.height);
  }

  /** What names the frame. */
  function note() {
    root.dataset.frame = frame;
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${clip.frames}`);
    readout.textContent = `frame ${frame + 1} / ${clip.frames} · ${(frame / clip.fps).toFixed(2)} s`;
    psnrChart.mark(frame + 1);
    if (motion) motion.mark(frame + 1);
    drawLatents();
  }

  function loadLatents() { latentPicture.src = clip.latents[latentRun].picture; }

  function drawLatents() {
    const latents = clip.latents[latentRun];
    if (!latents || !latentPicture.complete || !latentPicture.naturalWidth) return;
    const { channels, frames, height, width, outliers } = latents;
    const at = Math.min(frames - 1, Math.floor((frame * frames) / clip.frames));
    const columns = Math.min(channels, 8), rows = Math.ceil(channels / columns);
    latentCanvas.width = columns * (width + 1) - 1;
    latentCanvas.height = rows * (height + 1) - 1;
    const context = latentCanvas.getContext("2d");
    for (let i = 0; i < channels; i++) {
      context.drawImage(latentPicture, i * width, at * height, width, height,
        (i % columns) * (width + 1), Math.floor(i / columns) * (height + 1), width, height);
    }
    [mapCanvas.width, mapCanvas.height] = [width, height];
    mapCanvas.getContext("2d").drawImage(latentPicture, channels * width, at * height, width, height, 0, 0, width, height);
    latentCaption.textContent = `${channels} channels of latent frame ${at + 1} of ${frames}, ${width}×${height}; grey spans each channel's mean ± 2.5 standard deviations over the clip`;
    mapCaption.textContent = `distance from the frame's mean: black 0, bright 6 standard deviations; blue beyond 3 (outliers): ${(100 * outliers[at]).toFixed(2)}%`;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    if (event.key === " " && event.target.closest("button, a, summary")) return;
    const many = event.shiftKey ? 8 : 1;
    const keys = {
      " ": toggle,
      ArrowLeft: () => step(-many),
      ArrowRight: () => step(many),
      Home: () => { pause(); seek(0); },
      End: () => { pause(); seek(clip.frames - 1); },
      "[": () => setWipe(wipe - 0.05),
      "]": () => setWipe(wipe + 0.05),
      x: () => { [a, b] = [b, a]; chooseA.node.value = a; chooseB.node.value = b; draw(); },
      n: () => show((data.clips.indexOf(clip) + 1) % data.clips.length),
      p: () => show((data.clips.indexOf(clip) + data.clips.length - 1) % data.clips.length),
    };
    const act = keys[event.key] || keys[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });

  root.append(
    h("div", { class: "bar" }, picker.label, ofClips.length > 1 ? metricChoice.label : null,
      h("button", { id: "previous", click: () => show((data.clips.indexOf(clip) + data.clips.length - 1) % data.clips.length) }, "Previous clip"),
      h("button", { id: "next", click: () => show((data.clips.indexOf(clip) + 1) % data.clips.length) }, "Next clip")),
    pictures,
    h("div", { class: "bar" }, play, back, forward, h("div", { class: "grow" }, slider), readout, speed.label),
    status,
    h("div", { class: "halves" },
      h("figure", { class: "wipe" }, h("h3", {}, "Wipe"), h("div", { class: "bar" }, chooseA.label, chooseB.label), wipeCanvas, wipeSlider),
      h("div", {}, h("figure", {}, h("h3", {}, "PSNR over time (dB)"), chartBox), latentBox)),
    h("div", { class: "keys", "aria-label": "Keyboard" }, ...[
      ["Space", "play, pause"], ["← →", "one frame"], ["Shift ← →", "eight frames"], ["Home End", "first, last frame"],
      ["[ ]", "move the wipe"], ["X", "swap its sides"], ["N P", "next, previous clip"],
    ].map(([key, what]) => h("span", {}, h("kbd", {}, key), ` ${what}`))));
  latentBox.append(
    h("figure", {}, h("h3", {}, "Latent channels"), several ? h("div", { class: "bar" }, latentChoice.label) : null, latentCanvas, latentCaption),
    h("figure", {}, h("h3", {}, "Outliers"), mapCanvas, mapCaption));
  return { root, show };
}

/* ---------- motion ---------- */

/** What changes between frames, of the clip that is shown, and PSNR by place in a latent frame, of all clips. */
function motionOf() {
  if (!data.clips.some((clip) => clip.motion)) return null;
  const root = h("div", { class: "card", id: "motion" }), name = h("p", { class: "small soft" }), charts = h("div", { class: "halves" });
  const phases = phasePlot();
  let drawn = [];
  root.append(name, charts);

  function show(clip, onpick) {
    const lines = (values) => values.map((steps, i) => {
      const ours = i < data.runs.length;
      return steps && { label: ours ? data.runs[i].label : "trilinear baseline", colour: ours ? colour(i) : "var(--soft)", dashed: !ours,
        points: steps.map((value, t) => [t + 2, value]).filter(([, value]) => value != null) };
    }).filter((line) => line && line.points.length);
    const made = (title, label, values) => {
      const series = lines(values);
      return series.length ? figure(title, label, series, { xLabel: "frame", onpick }) : null;
    };
    drawn = [
      made("PSNR of motion over time (dB)", "PSNR of the change from the frame before, in dB", clip.motion.tpsnr),
      made("Flicker over time (levels of 255)", "How much more still values change than in the original", clip.motion.flicker),
    ].filter(Boolean);
    name.textContent = drawn.length ? `Over time: ${clip.key}, the clip above.` : `${clip.key} has one frame, in which nothing moves.`;
    charts.replaceChildren(...drawn.map((item) => item.node), ...(phases ? [phases] : []));
  }

  return { root, show, mark: (frame) => drawn.forEach((item) => item.mark(Math.max(frame, 2))) };
}

function phasePlot() {
  const of = (metrics) => metrics && metrics.psnr_phase && metrics.psnr_phase.phases;
  const line = (phases, label, paint, dashed) => ({ label, colour: paint, dashed, points: phases.map((value, i) => [i + 1, value]) });
  const series = data.runs.map((run, i) => of(run.metrics) && line(of(run.metrics), run.label, colour(i), false)).filter(Boolean);
  if (!series.length) return null;
  if (of(data.baseline)) series.push(line(of(data.baseline), "trilinear baseline", "var(--soft)", true));
  return figure("PSNR by place in a latent frame (dB), all clips", "PSNR by place in a latent frame", series, { xLabel: "frame of a latent frame" }).node;
}

/* ---------- latents ---------- */

function latentsOf() {
  const known = data.runs.map((run, i) => ({ ...run, i })).filter((run) => run.latents);
  if (!known.length) return null;
  const line = (run, points) => ({ label: several ? run.label : "latents", colour: colour(run.i), points });
  const bands = (values) => values.map((value, i) => [(i + 1) / values.length, 100 * value]);
  const spectra = known.filter((run) => run.latents.space).map((run) => line(run, bands(run.latents.space)));
  const pictures = known.find((run) => run.latents.pictures);
  if (pictures && spectra.length) spectra.push({ label: "pictures, averaged down to the latents' grid", colour: "var(--soft)", dashed: true, points: bands(pictures.latents.pictures) });
  const noise = known.filter((run) => run.latents.noise).map((run) => line(run, run.latents.noise));
  const spread = known.flatMap((run) => [
    line(run, run.latents.std.map((value, i) => [i + 1, value])),
    ...(run.latents.posterior_std ? [{ ...line(run, run.latents.posterior_std.map((value, i) => [i + 1, value])), label: `${several ? `${run.label}, ` : ""}of it the posterior's`, dashed: true }] : []),
  ]);
  if (!several) spread[0].label = "deviation";
  return h("div", {},
    h("div", { class: "scroll" }, h("table", { id: "latents-report" },
      several ? h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), ...data.runs.map((run, i) => h("th", { scope: "col" }, swatch(i), run.label)))) : null,
      h("tbody", {}, ...data.latents.map(([name, ...texts]) => h("tr", {}, h("th", { scope: "row" }, name), ...texts.map((text, i) => h("td", { "data-column": several && data.runs[i].label }, text || "–"))))))),
    h("div", { class: "halves" },
      spectra.length ? figure("Spectrum in space (% of what is not constant)", "Share of energy by frequency", spectra, { xLabel: "frequency, up to a part of the band", whole: false }).node : null,
      noise.length ? figure("PSNR with noise on the latents (dB)", "PSNR by standard deviations of noise", noise, { xLabel: "standard deviations of noise", whole: false }).node : null,
      figure("Deviation of each channel", "Deviation of each channel", spread, { xLabel: "channel" }).node));
}

/* ---------- rate and distortion ---------- */

function rateAndDistortion() {
  const { models, floors } = data.rates;
  const series = [
    ...floors.map(({ label, line, points }) => ({ label, colour: "var(--soft)", dashed: line, dots: !line, points })),
    ...models.map(({ run, rate, psnr }) => ({ label: data.runs[run].label, colour: colour(run), dots: true, points: [[rate, psnr]] })),
  ];
  return h("div", { class: "card", id: "rates" },
    figure("PSNR (dB) against numbers in the latents for each value of the clip", "Rate and distortion", series, { xLabel: "numbers for each value, logarithmic", whole: false, log: true }).node);
}

/* ---------- every clip's numbers ---------- */

function clipTable(open) {
  const root = h("div");
  const playable = new Map(data.clips.map((clip, i) => [clip.key, i]));
  let metric = data.metrics[0], sorted = { column: 0, descending: false };
  const filter = h("input", { type: "search", id: "filter", "aria-label": "Show clips whose name contains", placeholder: "Name contains …", input: fill });
  const ofClips = data.metrics.filter((item) => data.rows.some((row) => row.runs.some((values) => values && values[item.name] != null)));
  const metricChoice = select(several ? "Metric" : "Beside the baseline", ofClips.map((item) => item.label), (i) => { metric = ofClips[i]; build(); });
  metricChoice.node.id = "metric";
  const head = h("tr"), body = h("tbody"), count = h("span", { class: "small soft", role: "status" });
  let columns = [], lines = [];

  function columnsOfOne() {
    return [
      ...ofClips.map((item) => ({ label: item.label, metric: item, value: (row) => row.runs[0] && row.runs[0][item.name] })),
      ...(data.baseline && data.baseline[metric.name] ? [
        { label: `trilinear ${metric.label}`, metric, value: (row) => row.baseline && row.baseline[metric.name] },
        { label: `${metric.label} above it`, metric, sign: true, value: (row) => (row.baseline && row.runs[0] && row.baseline[metric.name] != null && row.runs[0][metric.name] != null ? row.runs[0][metric.name] - row.baseline[metric.name] : null) },
      ] : []),
    ];
  }

  function columnsOfRuns() {
    const value = (row, i) => (row.runs[i] ? row.runs[i][metric.name] : null);
    const spread = (row) => {
      const known = data.runs.map((_, i) => value(row, i)).filter((v) => v != null);
      return known.length > 1 ? Math.max(...known) - Math.min(...known) : null;
    };
    return [
      ...data.runs.map((run, i) => ({ label: run.label, metric, value: (row) => value(row, i) })),
      ...(data.baseline ? [{ label: "trilinear", metric, value: (row) => row.baseline && row.baseline[metric.name] }] : []),
      { label: "largest − smallest", metric, value: spread },
    ];
  }

  function build() {
    columns = [{ label: "clip", value: (row) => row.key }, { label: "frames", value: (row) => row.frames }, ...(several ? columnsOfRuns() : columnsOfOne())];
    sorted.column = Math.min(sorted.column, columns.length - 1);
    head.replaceChildren(...columns.map((column, i) => h("th", { scope: "col" }, h("button", { click: () => sortBy(i) }, column.label))));
    lines = data.rows.map((row) => ({ row, line: h("tr", { "data-key": row.key }, ...columns.map((column, i) => {
      if (i === 0) return h("td", { class: "text" }, playable.has(row.key) ? h("button", { class: "link", click: () => open(playable.get(row.key)) }, row.key) : row.key);
      return h("td", {}, column.metric ? number(column.value(row), column.metric, column.sign) : String(row.frames));
    })) }));
    fill();
  }

  function sortBy(column) {
    sorted = { column, descending: sorted.column === column ? !sorted.descending : column > 1 };
    fill();
  }

  /** The lines that pass the filter, in order; those without a value last. */
  function fill() {
    const { value } = columns[sorted.column];
    const sign = sorted.descending ? -1 : 1;
    const compare = (p, q) => {
      const [x, y] = [value(p.row), value(q.row)];
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    };
    [...head.children].forEach((cell, i) => {
      if (i === sorted.column) cell.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    const wanted = filter.value.toLowerCase();
    const kept = lines.filter(({ row }) => row.key.toLowerCase().includes(wanted)).sort(compare);
    body.replaceChildren(...kept.map(({ line }) => line));
    count.textContent = `${kept.length.toLocaleString("en")} of ${lines.length.toLocaleString("en")} clips`;
  }

  build();
  root.append(h("div", { class: "bar", style: "margin-bottom: 12px" }, filter, several || data.baseline ? metricChoice.label : null, count),
    h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Every clip" }, h("table", { id: "clips" }, h("thead", {}, head), body)));
  return root;
}

/* ---------- the page ---------- */

function build() {
  document.title = data.title;
  const page = document.getElementById("page");
  const section = (title, ...children) => page.append(h("section", {}, h("h2", {}, title), ...children));
  page.append(h("header", {}, h("h1", {}, data.title), h("p", {}, data.lead),
    h("dl", { class: "facts" }, ...data.facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))))));
  section("Summary", summary(), h("p", { class: "small soft", style: "margin-top: 10px" },
    "Mean over all frames; below it the 95 % interval by bootstrap over clips, drawn on one scale. ↑ higher is better, ↓ lower is better."));
  if (data.settings) section("Settings that differ", settings());
  const curves = data.runs.map((run, i) => ({ label: run.label, colour: colour(i), points: run.curve })).filter((line) => line.points.length);
  if (curves.length) section("Validation PSNR during training (dB)", h("div", { class: "card" }, chart("Validation PSNR in dB over steps", curves, { xLabel: "step" }).box, legend(curves)));
  if (data.rates) {
    section("Rate and distortion", rateAndDistortion(), h("p", { class: "small soft", style: "margin-top: 10px" },
      "A point is a model on all clips. Grey: codecs that are linear, which a model has to beat: trilinear on each model's own grid; principal components of 8×8×8 blocks, fitted on other clips of the same set."));
  }
  let view = null;
  if (data.clips.length) {
    const motion = motionOf();
    view = viewer(motion);
    section("Clips", view.root);
    if (motion) {
      section("Motion", motion.root, h("p", { class: "small soft", style: "margin-top: 10px" },
        "Motion: the change from the frame before, against the original's. Flicker: how much more the values change that are still in the original. A latent frame stands for several frames; its places are often not equally good, seen as a pulse."));
    }
  }
  const latents = latentsOf();
  if (latents) section("Latents", latents);
  if (data.rows.length) {
    section("Every clip", clipTable((index) => {
      view.show(index);
      view.root.scrollIntoView({ behavior: reducedMotion ? "auto" : "smooth", block: "start" });
    }));
  }
  if (data.skipped.length) section("Skipped clips", h("ul", {}, ...data.skipped.map((text) => h("li", {}, text))));
  section("How this was measured", h("dl", { class: "details" }, ...data.details.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])));
  if (view) view.show(0);
}

build();
