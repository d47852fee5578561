"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("slider"), stage = byId("stage"), play = byId("play"), message = byId("status"), now = byId("now");
const promptText = document.querySelector(".prompt").textContent;

function span(text, className) {
  const element = document.createElement("span");
  element.textContent = text;
  element.className = className;
  return element;
}

function show(number) {
  const frame = data.frames[number], before = data.frames[Math.max(number - 1, 0)];
  const children = [span(promptText, "prompt")];
  data.tokens.slice(0, frame.final).forEach((token, place) => {
    const element = span(token.text, "token" + (token.special ? " special" : ""));
    [element.style.background, element.style.color] = data.shades[token.shade];
    if (number > 0 && place >= before.final) element.classList.add("fresh");
    children.push(element);
  });
  frame.drafts.forEach((id, place) => {
    // The same place in the text a tick ago, if there was one.
    const old = before.drafts[place + frame.final - before.final];
    const element = span(data.texts[id], "draft" + (number > 0 && old !== undefined && old !== id ? " changed" : ""));
    element.title = frame.recurrences[place] + " recurrences so far";
    children.push(element);
  });
  stage.replaceChildren(...children);
  const last = data.frames[data.frames.length - 1].tick;
  const what = number === 0
    ? "Before the first tick: the prompt's own pass has predicted the first token."
    : `Tick ${frame.tick} of ${last}: a wave of ${frame.width}, ${frame.committed} committed; ${frame.final} of ${data.tokens.length} tokens are final.`;
  message.textContent = what;
  slider.setAttribute("aria-valuetext", what);
  now.hidden = number === 0;
  if (number > 0) {
    const box = data.heatMap, height = box.height / box.ticks;
    now.style.left = 100 * box.left + "%";
    now.style.width = 100 * box.width + "%";
    now.style.top = 100 * (box.top + (frame.tick - box.first) * height) + "%";
    now.style.height = 100 * height + "%";
  }
}

let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

play.addEventListener("click", () => {
  if (timer !== null) return stop();
  if (slider.value === slider.max) slider.value = 0;
  play.textContent = "Pause";
  show(Number(slider.value));
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show(Number(slider.value));
    if (slider.value === slider.max) stop();
  }, Math.max(60, Math.min(250, 15000 / data.frames.length)));
});

slider.addEventListener("input", () => {
  stop();
  show(Number(slider.value));
});

// One token at a time is in the tab order; arrow keys move on from it.
const tokens = [...document.querySelectorAll("#text .token")];

function describe(element) {
  const quoted = JSON.stringify(element.textContent);
  byId("details").textContent = `${quoted}: ${element.title}.`;
}

tokens.forEach((element, place) => {
  element.tabIndex = place === 0 ? 0 : -1;
  element.addEventListener("focus", () => describe(element));
  element.addEventListener("mouseenter", () => describe(element));
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -tokens.length, End: tokens.length }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, place + step))];
    element.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
});

show(Number(slider.value));
