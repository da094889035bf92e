// Sorts tables by their headers and copies commands. Without it the page is the same, in the order that was written.
"use strict";
(() => {
  const said = document.getElementById("said");

  const sorted = (rows, column, kind, down) => {
    const key = (row) => row.cells[column].dataset.value;
    const compare = kind === "number" ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
    return [...rows].sort((one, other) => {
      const a = key(one), b = key(other);
      if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays last
      return down ? compare(b, a) : compare(a, b);
    });
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const name = head.querySelector(".name");
      const button = document.createElement("button");
      button.type = "button";
      button.append(...name.childNodes);
      name.replaceWith(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : head.dataset.kind === "number";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        for (const body of table.tBodies) {
          body.append(...sorted([...body.rows].filter((row) => !row.classList.contains("head")), column, head.dataset.kind, down));
        }
        said.textContent = `Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`;
      });
    });
  }

  const boxes = document.querySelectorAll(".scroll"); // a box that does not scroll is no stop for the keyboard
  const stops = () => boxes.forEach((box) => (box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1));
  addEventListener("resize", stops);
  document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", stops));
  stops();

  document.querySelectorAll(".command code").forEach((code) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy the command ${code.textContent.slice(0, 60)}`);
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
        said.textContent = "Copied";
      } catch {
        said.textContent = "Selected; copy it with the keyboard"; // no clipboard for pages from a file, in some browsers
      }
    });
    code.after(button);
  });
})();
