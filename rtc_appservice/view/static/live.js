// Brings a call that goes on up to date. The page is whole without it.
"use strict";
const EVERY_MS = 5000;

async function update() {
  const main = document.querySelector("main");
  // Whoever is at a link or scrolls a table with the keyboard keeps what they are at.
  const busy = main.contains(document.activeElement) && document.activeElement !== main;
  if (!busy && !document.hidden) {
    const answer = await fetch(location.href);
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      main.replaceChildren(...page.querySelector("main").childNodes);
      if (!page.querySelector('script[src="/static/live.js"]')) return;
    }
  }
  schedule();
}

function schedule() {
  setTimeout(() => update().catch(schedule), EVERY_MS);
}

schedule();
