"use strict";
/* Draws every [data-chart] by its name among the page's charts (see pipeline/report_curves.py), as SVG.
   Colours come from the style sheet, so that light, dark and paper are one place's business. */
const PAGE = JSON.parse(document.getElementById("page-data").textContent) || {};

const Charts = (() => {
  const drawn = [];
  const font = getComputedStyle(document.body).fontFamily; // the library measures text itself, and cannot inherit
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const short = (value) => (value === null || value === undefined ? "n/a"
    : Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString());

  function axis(spec, horizontal, low) {
    const shares = spec.min === 0 && spec.max === 1;
    return {
      type: "value", name: spec.name, nameLocation: "middle", nameGap: horizontal ? 26 : 36,
      nameTextStyle: { color: colour("soft"), fontSize: 12 }, min: spec.min ?? null, max: spec.max ?? null,
      scale: Boolean(spec.fit) || spec.min === undefined, minInterval: spec.whole ? 1 : 0, splitNumber: low ? 3 : 4, ...(shares ? { interval: low ? 0.5 : 0.25 } : {}),
      axisLine: { show: horizontal, lineStyle: { color: colour("muted") } }, axisTick: { show: false },
      axisLabel: { color: colour("soft"), fontSize: 11, hideOverlap: true, ...(horizontal && spec.max !== undefined ? { alignMaxLabel: "right" } : {}), formatter: short },
      splitLine: { show: !horizontal, lineStyle: { color: colour("grid") } },
    };
  }

  function line(series, place) {
    const shade = series.muted ? colour("muted") : colour(`s${(series.colour ?? place) % 8}`);
    const points = Boolean(series.scatter);
    const dashes = series.muted ? [3, 3] : series.dash || (series.colour === undefined && place >= 8) ? [7, 4] : "solid";
    return {
      name: series.name, type: points ? "scatter" : "line", data: series.data, silent: Boolean(series.muted || series.thin),
      step: series.step ? "start" : false, showSymbol: Boolean(series.markers) || series.data.length === 1,
      symbol: "circle", symbolSize: points ? (series.data.length > 500 ? 4 : 7) : 6, animation: false, connectNulls: false, z: series.thin ? 2 : series.hollow ? 5 : 3,
      itemStyle: series.hollow ? { color: colour("surface"), borderColor: colour("ink"), borderWidth: 1.5 } : { color: shade, opacity: points ? 0.75 : 1 },
      lineStyle: { color: shade, type: dashes, width: series.thin || series.muted ? 1 : 2.2, opacity: series.thin ? 0.35 : 1 },
      emphasis: { disabled: true },
    };
  }

  const SYMBOL = 26; // of a legend: long enough for dashes

  /* How much of a name a legend shows, in pixels. */
  const longest = (width) => width < 500 ? 130 : 300;

  const pencil = document.createElement("canvas").getContext("2d");

  /* Into how many rows the names of a legend are broken: what is below has to leave them room. */
  function legendRows(names, room, most) {
    pencil.font = `11px ${font}`;
    let rows = 1, taken = 0;
    for (const name of names) {
      // symbol, gap, text, gap; the last gap is room for the library's own measure of a text, which is not quite ours
      const width = SYMBOL + 5 + Math.min(Math.ceil(pencil.measureText(name).width), most) + 12;
      if (taken > 0 && taken + width > room) { rows += 1; taken = 0; }
      taken += width;
    }
    return rows;
  }

  function option(spec, element) {
    const width = element.clientWidth, low = element.clientHeight < 200;
    const named = [...new Set(spec.series.filter((each) => !each.thin).map((each) => each.name))];
    const several = named.length > 1, scrolled = named.length > 4;
    const rows = scrolled ? 1 : legendRows(named, width - 40 - 2 * 5, longest(width)); // its place on the left, its padding
    return {
      animation: false, textStyle: { fontFamily: font }, aria: { enabled: false },
      grid: { left: element.closest(".course") ? 66 : 54, right: 10, outerBoundsMode: "none", top: several ? 32 + 20 * (rows - 1) : 10, bottom: 40 },
      legend: several ? { top: 0, left: 40, right: 0, type: scrolled ? "scroll" : "plain", itemWidth: SYMBOL, itemHeight: 8, itemGap: 12, data: named, inactiveColor: colour("muted"),
        textStyle: { color: colour("ink"), fontSize: 11, width: longest(width), overflow: "truncate" }, pageTextStyle: { color: colour("soft") }, pageIconColor: colour("soft") } : undefined,
      tooltip: { trigger: spec.series.some((each) => each.scatter && !each.hollow) || spec.square ? "item" : "axis", confine: true, transitionDuration: 0, backgroundColor: colour("surface"), borderColor: colour("line"),
        textStyle: { color: colour("ink"), fontSize: 12 }, formatter: (hit) => said(spec, Array.isArray(hit) ? hit : [hit]) },
      xAxis: axis(spec.x, true), yAxis: axis(spec.y, false, low), series: spec.series.map(line),
    };
  }

  function said(spec, hits) {
    const box = document.createElement("div");
    const seen = new Set();
    hits.forEach((hit, place) => {
      if (place === 0) box.append(`${spec.x.name} ${short(hit.value[0])}`);
      if (seen.has(hit.seriesName)) return;
      seen.add(hit.seriesName);
      const row = document.createElement("div");
      row.append(`${hit.seriesName}: ${short(hit.value[1])}`);
      box.append(row);
    });
    return box;
  }

  /* A chart that is drawn anew when its place or the colours change. `make` gives its option; returns how to draw it. */
  function add(element, make) {
    const chart = echarts.init(element, null, { renderer: "svg" });
    const show = () => { chart.resize({ animation: { duration: 0 } }); chart.setOption(make(), true); };
    drawn.push(show);
    show();
    return { chart, show };
  }

  function draw(element) {
    const spec = (PAGE.charts || {})[element.dataset.chart];
    if (spec) add(element, () => option(spec, element));
  }

  function again() {
    for (const show of drawn) show();
  }

  document.querySelectorAll("[data-chart]").forEach(draw);
  let wait = 0;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(again, 120); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia("print").addEventListener("change", again);
  addEventListener("beforeprint", again);
  addEventListener("afterprint", again);
  return { add, colour, font, option, short };
})();
