"use strict";
/* A click in the confusion matrix lists the videos of that cell. Text goes in as text, never as markup. */
(() => {
  const panel = document.getElementById("cell-list");
  if (!panel || !PAGE.cells) return;
  const cells = PAGE.cells;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function head(names) {
    const row = element("tr");
    for (const [name, number] of names) {
      const cell = element("th", name, number ? "n" : "");
      cell.scope = "col";
      row.append(cell);
    }
    const made = element("thead");
    made.append(row);
    return made;
  }

  function video([place, frames, predicted, truth]) {
    const [id, fold] = PAGE.videos[place];
    const row = element("tr");
    row.dataset.video = id;
    const name = element("th");
    name.scope = "row";
    const card = document.getElementById(`video-${place}`);
    if (card) {
      const link = element("a", id);
      link.href = `#video-${place}`;
      name.append(link);
    } else name.append(id);
    row.append(name);
    row.append(element("td", fold));
    if (cells.unit === "frame") row.append(element("td", frames.toLocaleString("en"), "n"));
    row.append(element("td", predicted.toFixed(3), "n"));
    if (!cells.several) row.append(element("td", truth.toFixed(3), "n"));
    const picture = element("td");
    const shown = card && card.querySelectorAll(".strip img");
    if (shown && shown.length) {
      const image = element("img");
      image.src = shown[Math.floor(shown.length / 2)].src;
      image.alt = "";
      picture.append(image);
    }
    row.append(picture);
    return row;
  }

  function show(button) {
    document.querySelectorAll(".matrix button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
    const key = button.dataset.cell;
    const listed = cells.listed[key], all = cells.videos[key];
    panel.replaceChildren();
    panel.append(element("h3", button.dataset.said));
    if (all > listed.length) panel.append(element("p", `The ${listed.length} surest of ${all.toLocaleString("en")} videos; predictions.csv has all.`, "small"));
    const scroll = element("div", undefined, "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Videos of the chosen cell");
    const table = element("table");
    const names = [["Video"], ["Fold"]];
    if (cells.unit === "frame") names.push(["Frames", true]);
    names.push([cells.several ? "Probability" : "P(predicted)", true]);
    if (!cells.several) names.push(["P(true)", true]);
    names.push(["Picture"]);
    table.append(head(names));
    const body = element("tbody");
    listed.forEach((each) => body.append(video(each)));
    table.append(body);
    scroll.append(table);
    panel.append(scroll);
  }

  document.querySelectorAll(".matrix button").forEach((button) => button.addEventListener("click", () => show(button)));
})();
