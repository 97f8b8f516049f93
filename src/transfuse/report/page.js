"use strict";
const filters = document.getElementById("filters");
const search = document.getElementById("fact-search");
const shown = document.getElementById("n-shown");
const facts = Array.from(document.querySelectorAll(".fact"));
const texts = facts.map((fact) => fact.textContent.toLowerCase());

function applyFilters() {
  const outcome = filters.querySelector("input[name=outcome]:checked").value;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  facts.forEach((fact, i) => {
    const fits = (!outcome || fact.dataset.outcome === outcome) && words.every((word) => texts[i].includes(word));
    fact.hidden = !fits;
    count += fits ? 1 : 0;
  });
  document.querySelectorAll(".section-facts").forEach((section) => {
    section.hidden = !section.querySelector(".fact:not([hidden])");
  });
  shown.textContent = `${count} of ${facts.length} facts shown`;
}

if (filters) {
  filters.hidden = false;
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}
