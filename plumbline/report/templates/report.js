// The search of the list of answers. Without it the page shows all of them.
(() => {
  "use strict";
  const form = document.getElementById("search");
  if (!form) return;
  const [words, policy, verdict] = form.querySelectorAll("input, select");
  const status = document.getElementById("found");
  const rest = document.getElementById("rest");
  const OPENED = 5;

  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const spoken = (node) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll("del").forEach((removed) => removed.remove());
    return plain(copy.textContent);
  };
  const entries = [...document.querySelectorAll("details.entry")].map((entry) => ({
    entry,
    asked: spoken(entry.querySelector(".conversation")),
    answers: [...entry.querySelectorAll(".answer")].map((answer) => ({
      policy: answer.dataset.policy,
      verdict: answer.dataset.verdict,
      text: spoken(answer.querySelector(".said")),
    })),
  }));

  const search = () => {
    const wanted = plain(words.value).split(/\s+/).filter(Boolean);
    const fits = ({ asked, answers }) => answers.some((answer) =>
      (!policy.value || answer.policy === policy.value)
      && (!verdict.value || answer.verdict === verdict.value)
      && wanted.every((word) => asked.includes(word) || answer.text.includes(word)));
    const active = Boolean(wanted.length || policy.value || verdict.value);
    const matches = entries.filter(fits);
    const shown = new Set(matches.map(({ entry }) => entry));
    entries.forEach(({ entry }) => {
      entry.hidden = !shown.has(entry);
      entry.open = active && matches.length <= OPENED && shown.has(entry);
    });
    if (rest) {
      rest.classList.toggle("searched", active);
      rest.open = active;
    }
    status.textContent = !active ? "" : matches.length
      ? `${matches.length} of ${entries.length} prompts`
      : "No prompt matches. Remove a word or a filter.";
  };

  form.hidden = false;
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(search));
})();
