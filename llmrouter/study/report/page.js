"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  const choose = (buttons, panels, key) => buttons.forEach((button) => button.addEventListener("click", () => {
    const value = button.dataset[key];
    buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
    panels.forEach((panel) => panel.classList.toggle("shown", panel.dataset[key] === value));
  }));
  const pressed = document.querySelector(".loads [aria-pressed=true]");
  all(".load").forEach((panel) => panel.classList.toggle("shown", pressed && panel.dataset.load === pressed.dataset.load));
  choose(all(".loads button"), all(".load"), "load");
  all(".matrix").forEach((one) => choose(all("button", one), all(".metric", one), "metric"));

  const chips = all(".chips [data-slot]");
  const show = (chip, on) => {
    chip.setAttribute("aria-pressed", String(on));
    all(`.p.s${chip.dataset.slot}`).forEach((mark) => { if (!mark.closest(".strip")) mark.classList.toggle("on", on); });
  };
  const first = chips.map((chip) => chip.getAttribute("aria-pressed") === "true");
  chips.forEach((chip) => chip.addEventListener("click", () => show(chip, chip.getAttribute("aria-pressed") !== "true")));
  all(".chips .all").forEach((button) => button.addEventListener("click", () => {
    const every = button.textContent === "all";
    chips.forEach((chip, index) => show(chip, every || first[index]));
    button.textContent = every ? "fewer" : "all";
  }));

  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest && event.target.closest("[data-t]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.t;
    const { clientX: x, clientY: y } = event;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
  });

  all(".sortable").forEach((box) => {
    const body = box.querySelector("tbody");
    const rows = [...body.rows];
    const count = box.querySelector(".count");
    const heads = all("thead th", box);
    const value = (row, index) => {
      const cell = row.cells[index];
      const text = cell.dataset.v ?? cell.textContent;
      const figure = Number(text);
      return text.trim() === "" || Number.isNaN(figure) ? (cell.dataset.v === undefined && text !== "–" ? text : null) : figure;
    };
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row) => [value(row, index), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...keyed.map(([, row]) => row));
    }));
    const filter = (words) => {
      let shown = 0;
      rows.forEach((row) => {
        const text = [...row.cells].slice(0, 3).map((cell) => cell.textContent.toLowerCase());
        row.hidden = !words.every((word) => text.some((one) => one.includes(word)));
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    const search = box.querySelector("input[type=search]");
    search.addEventListener("input", () => filter(search.value.toLowerCase().split(/\s+/).filter(Boolean)));
    filter([]);
    box.querySelector(".save").addEventListener("click", () => {
      const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
      const lines = [...body.rows].filter((row) => !row.hidden).map((row) =>
        [...row.cells].map((cell) => quoted(cell.dataset.v ?? cell.textContent.replace("–", ""))).join(","));
      lines.unshift(heads.map((head) => quoted(head.dataset.key)).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\n"), "\n"], { type: "text/csv" }));
      link.download = "bench.csv";
      link.click();
      URL.revokeObjectURL(link.href);
    });
    const changes = box.querySelector(".with-changes");
    changes.addEventListener("change", () => box.classList.toggle("no-changes", !changes.checked));
  });
})();
