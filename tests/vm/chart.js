// A picture of lines over connections, as SVG: what the runs in the lab draw. It knows neither the lab nor the server.
const WIDTH = 860, HEIGHT = 480, LEFT = 80, RIGHT = 200, TOP = 50, BOTTOM = 60;
const COLOURS = ['#1f6feb', '#d1502f', '#2da44e', '#8250df', '#9a6700'];

const escaped = (text) => String(text).replace(/[&<>]/g, (letter) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[letter]);

/** Steps of 1, 2 or 5 times a power of ten that divide `most` into about five. */
export function ticks(most) {
  const rough = most / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  return Array.from({ length: Math.floor(most / step * 1.0001) + 1 }, (_, at) => at * step);
}

/**
 * `series`: [{ name, points: [[x, y], ...] }]. Both axes begin at 0, so that lines show what they are worth; `xLabel` and `yLabel`
 * write the numbers beside them.
 */
export function chart({ title, xTitle, yTitle, series, xLabel = String, yLabel = String }) {
  const points = series.flatMap((line) => line.points);
  const [xMost, yMost] = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])) * 1.05);
  if (!(xMost > 0) || !(yMost > 0)) throw new Error('a picture of nothing');
  const x = (value) => LEFT + value / xMost * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - value / yMost * (HEIGHT - TOP - BOTTOM);
  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="13">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    `<text x="${LEFT}" y="28" font-size="17">${escaped(title)}</text>`,
  ];
  for (const value of ticks(yMost)) {
    out.push(`<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(value).toFixed(1)}" y2="${y(value).toFixed(1)}" stroke="#ddd"/>`);
    out.push(`<text x="${LEFT - 8}" y="${(y(value) + 4).toFixed(1)}" text-anchor="end">${escaped(yLabel(value))}</text>`);
  }
  for (const value of ticks(xMost)) out.push(`<text x="${x(value).toFixed(1)}" y="${HEIGHT - BOTTOM + 20}" text-anchor="middle">${escaped(xLabel(value))}</text>`);
  out.push(`<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(0)}" y2="${y(0)}" stroke="#333"/>`);
  out.push(`<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 16}" text-anchor="middle">${escaped(xTitle)}</text>`);
  out.push(`<text transform="translate(20 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${escaped(yTitle)}</text>`);
  series.forEach(({ name, points: own }, at) => {
    const colour = COLOURS[at % COLOURS.length];
    out.push(`<polyline fill="none" stroke="${colour}" stroke-width="2" points="${own.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(' ')}"/>`);
    for (const [a, b] of own) out.push(`<circle cx="${x(a).toFixed(1)}" cy="${y(b).toFixed(1)}" r="3" fill="${colour}"/>`);
    out.push(`<text x="${WIDTH - RIGHT + 12}" y="${TOP + 20 * at + 10}" fill="${colour}">${escaped(name)}</text>`);
  });
  out.push('</svg>');
  return `${out.join('\n')}\n`;
}
