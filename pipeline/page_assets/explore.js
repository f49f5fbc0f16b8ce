"use strict";
/* The map of videos: a picture under the pointer, the arrow keys from video to video, and what a chosen one is like.
   Text from the bank goes in as text, never as markup. */
(() => {
  const data = PAGE.explore;
  const panel = document.getElementById("chosen");
  if (!data || !panel) return;
  const { videos, labels, pictures } = data;
  const SYMBOLS = ["circle", "triangle", "rect", "diamond", "down"];
  const DOWN = "path://M0,0 L10,0 L5,9 Z"; // the library has no triangle that stands on its tip
  const place = document.getElementById("map"), field = document.getElementById("find");
  let which = "pca", chosen = 0, only = null, map = null, change = null;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function picture(number) {
    if (!pictures[number]) return element("span", "no picture", "no-picture");
    const made = element("img");
    made.src = pictures[number];
    made.alt = "";
    return made;
  }

  const STILL = { frozen: 1, zero: 6, "not finite": 3 }; // colours, as in the table
  const labelOf = (video) => (video.label < 0 ? "" : labels[video.label]);

  /* What stands under the pointer, and beside the chosen video when the keyboard moves. */
  function tip(number) {
    const box = element("div", undefined, "tip");
    if (pictures[number]) box.append(picture(number));
    box.append(element("strong", videos[number].id));
    if (labelOf(videos[number])) box.append(element("span", labelOf(videos[number])));
    return box;
  }

  function look(code) {
    const named = code >= 0 && code < data.named;
    return { symbol: named ? SYMBOLS[code % SYMBOLS.length] : "circle", shade: Charts.colour(named ? `s${code % 8}` : "muted") };
  }

  function mapOption() {
    const points = data.maps[which].points;
    const size = videos.length > 1000 ? 5 : videos.length > 200 ? 7 : 10;
    const codes = [...new Set(videos.map((video) => (video.label < data.named ? video.label : data.named)))].sort((a, b) => a - b);
    const series = codes.map((code) => {
      const { symbol, shade } = look(code), faint = only !== null && only !== code;
      return {
        type: "scatter", symbol: symbol === "down" ? DOWN : symbol, symbolSize: size, z: faint ? 2 : 3, animation: false, emphasis: { disabled: true },
        data: videos.flatMap((video, number) => (Math.min(video.label, data.named) === code ? [[...points[number], number]] : [])),
        itemStyle: { color: shade, opacity: faint ? 0.12 : 0.8 },
      };
    });
    series.push({
      type: "scatter", symbol: "circle", symbolSize: size + 10, z: 5, silent: true, animation: false, emphasis: { disabled: true }, data: [[...points[chosen], chosen]],
      itemStyle: { color: "transparent", borderColor: Charts.colour("ink"), borderWidth: 2.5 },
    });
    const axis = (name, gap) => ({
      type: "value", name, scale: true, nameLocation: "middle", nameGap: gap, nameTextStyle: { color: Charts.colour("soft"), fontSize: 12 },
      axisLabel: { show: false }, axisTick: { show: false }, axisLine: { show: true, onZero: false, lineStyle: { color: Charts.colour("line") } }, splitLine: { show: false }, boundaryGap: ["4%", "4%"],
    });
    return {
      animation: false, textStyle: { fontFamily: Charts.font }, aria: { enabled: false }, grid: { left: 26, right: 8, top: 8, bottom: 26, outerBoundsMode: "none" },
      tooltip: { trigger: "item", confine: true, transitionDuration: 0, padding: 6, backgroundColor: Charts.colour("surface"), borderColor: Charts.colour("line"),
        textStyle: { color: Charts.colour("ink"), fontSize: 12 }, formatter: (hit) => tip(hit.value[2]) },
      xAxis: axis(data.maps[which].x, 8), yAxis: axis(data.maps[which].y, 8), series,
    };
  }

  function changeOption() {
    const { unit, end, line, still } = videos[chosen].course;
    const series = [{ name: "change", data: line, colour: 0 }];
    for (const kind of [...new Set(still.map((each) => each[0]))]) {
      const marks = still.filter((each) => each[0] === kind).flatMap(([, from, to]) => [[from, 0], [to, 0], [to, null]]);
      series.push({ name: kind, data: marks, colour: STILL[kind], markers: true });
    }
    return Charts.option({ x: { name: unit, min: 0, max: end || 1 }, y: { name: "Change", min: 0 }, series }, document.getElementById("change"));
  }

  function spoken({ unit, line, still }) {
    const values = line.map((point) => point[1]).filter((value) => value !== null);
    if (!values.length) return "One row: there is no change.";
    const said = still.map(([kind, from, to]) => `${kind} from ${Charts.short(from)} to ${Charts.short(to)}`);
    return `Change from row to row, over ${unit.toLowerCase()}: from ${Charts.short(Math.min(...values))} to ${Charts.short(Math.max(...values))}. ${said.join("; ") || "It never stands still"}.`;
  }

  function neighbour([number, cosine]) {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(picture(number));
    const text = element("span", undefined, "text");
    text.append(element("strong", videos[number].id));
    text.append(element("span", [labelOf(videos[number]), cosine.toFixed(3)].filter(Boolean).join(" · "), "small"));
    button.append(text);
    button.addEventListener("click", () => choose(number, true));
    item.append(button);
    return item;
  }

  function choose(number, focus) {
    chosen = number;
    const video = videos[number];
    panel.replaceChildren();
    const head = element("div", undefined, "head");
    if (pictures[number]) head.append(picture(number));
    const words = element("div"), title = element("h3", video.id);
    title.id = "chosen-title";
    title.tabIndex = -1;
    words.append(title, element("p", video.facts, "small"));
    head.append(words);
    panel.append(head);
    if (video.near.length) {
      panel.append(element("h4", "Nearest neighbours"));
      const list = element("ul", undefined, "neighbours");
      video.near.forEach((each) => list.append(neighbour(each)));
      panel.append(list);
    }
    const chart = document.getElementById("change"), none = document.getElementById("no-change");
    document.getElementById("change-of").textContent = video.id;
    const some = video.course.line.length > 0;
    chart.hidden = !some;
    none.hidden = some;
    chart.setAttribute("aria-label", spoken(video.course));
    if (some) {
      if (change) change.show();
      else change = Charts.add(chart, changeOption);
    }
    if (map) map.show();
    field.value = video.id;
    document.querySelectorAll("[data-video]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.video === video.id)));
    if (focus) title.focus({ preventScroll: true });
  }

  /* The nearest video in a direction, what lies aside counting double. */
  function towards(key) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key];
    const at = data.maps[which].points.map((point) => map.chart.convertToPixel({ seriesIndex: 0 }, point));
    let best = null, least = Infinity;
    at.forEach(([x, y], number) => {
      const right = x - at[chosen][0], up = at[chosen][1] - y;
      const ahead = right * dx + up * dy, aside = Math.abs(right * dy) + Math.abs(up * dx);
      if (number !== chosen && ahead > 0 && ahead + 2 * aside < least) [best, least] = [number, ahead + 2 * aside];
    });
    return best;
  }

  function tipAtChosen() {
    const [x, y] = map.chart.convertToPixel({ seriesIndex: 0 }, data.maps[which].points[chosen]);
    const options = map.chart.getOption().series;
    for (let s = 0; s < options.length - 1; s += 1) {
      const d = options[s].data.findIndex((point) => point[2] === chosen);
      if (d >= 0) map.chart.dispatchAction({ type: "showTip", seriesIndex: s, dataIndex: d, position: [x + 14, y + 14] });
    }
  }

  if (place && data.maps) {
    map = Charts.add(place, mapOption);
    map.chart.on("click", (hit) => choose(hit.value[2]));
    place.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const next = towards(event.key);
      if (next !== null) choose(next);
      tipAtChosen();
    });
    place.addEventListener("focus", tipAtChosen);
    place.addEventListener("blur", () => map.chart.dispatchAction({ type: "hideTip" }));
    document.querySelectorAll("[data-map]").forEach((button) => button.addEventListener("click", () => {
      which = button.dataset.map;
      document.querySelectorAll("[data-map]").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      place.setAttribute("aria-label", data.maps[which].alt);
      map.show();
    }));
    const keys = document.querySelectorAll("[data-label]");
    const paint = () => keys.forEach((button) => {
      const { symbol, shade } = look(Number(button.dataset.label));
      button.querySelector("i").className = `mark ${symbol}`;
      button.querySelector("i").style.setProperty("--shade", shade);
    });
    paint();
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", paint);
    keys.forEach((button) => button.addEventListener("click", () => {
      const code = Number(button.dataset.label);
      only = only === code ? null : code;
      keys.forEach((each) => each.setAttribute("aria-pressed", String(only === Number(each.dataset.label))));
      map.show();
    }));
  }

  const byId = new Map(videos.map((video, number) => [video.id, number]));
  field.addEventListener("change", () => {
    const number = byId.get(field.value) ?? videos.findIndex((video) => video.id.includes(field.value));
    if (number >= 0) choose(number);
    else field.value = videos[chosen].id;
  });
  field.addEventListener("focus", () => field.select());
  document.querySelectorAll("[data-video]").forEach((button) => button.addEventListener("click", () => {
    choose(byId.get(button.dataset.video));
    document.getElementById("map-section").scrollIntoView();
    document.getElementById("chosen-title").focus({ preventScroll: true });
  }));
  choose(0);
})();
