"use strict";
const charts = JSON.parse(document.getElementById("chart-data").textContent);
const settings = {
  displayModeBar: false, // its buttons cover the legend, and one of them wants a network
  responsive: true,
};
for (const chart of charts) {
  Plotly.newPlot(chart.id, chart.data, chart.layout, settings);
}
// A4 less its margins is 182 mm, 688 CSS pixels; a chart drawn for the screen would be cut.
const resize = (size) => charts.forEach((chart) => Plotly.relayout(chart.id, size));
window.addEventListener("beforeprint", () => resize({ autosize: false, width: 686 }));
window.addEventListener("afterprint", () => resize({ autosize: true, width: null }));
