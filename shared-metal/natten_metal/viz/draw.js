// The picture: the tokens of a plane, or for rank 1 the queries x keys of the axis, as squares on a canvas.

const LABEL = { left: 34, top: 20 };
const GAP = 14;
const [LEAST, MOST] = [4, 22]; // pixels of a square
const LEAST_OF_BRICKS = 7; // where bricks show behind what is seen
const PLANES = 12; // of rank 3, at most

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// [first, last) of at most `most` out of `length` tokens, around one of them.
function shown(length, token, most) {
  const count = Math.min(length, Math.max(1, most));
  const first = Math.min(Math.max(token - div(count, 2), 0), length - count);
  return [first, first + count];
}

// Where things are: {panels: [{plane, left, top, rows, columns}], cell, width, height}; rows and columns are
// [first, last).
function layout(shape, token, width, least) {
  const [height_of, width_of] = shape.length === 1 ? [shape[0], shape[0]] : shape.slice(-2);
  const centers = shape.length === 1 ? [token[0], token[0]] : token.slice(-2);
  const planes = shape.length === 3 ? shown(shape[0], token[0], PLANES) : [0, 1];
  const room = width - LABEL.left;
  const columns = shown(width_of, centers[1], div(room, least));
  const count = columns[1] - columns[0];
  const small = shape.length === 3 ? least + 2 : MOST;
  const across = Math.max(1, Math.min(planes[1] - planes[0], div(width, LABEL.left + count * small + GAP)));
  const cell = Math.max(least, Math.min(MOST, div(div(width, across) - LABEL.left - (across > 1 ? GAP : 1), count)));
  const rows = shown(height_of, centers[0], div(640, cell));
  const [step_x, step_y] = [LABEL.left + count * cell + GAP, LABEL.top + (rows[1] - rows[0]) * cell + GAP];
  const title = shape.length === 3 ? 18 : 0;
  const panels = [];
  for (let plane = planes[0]; plane < planes[1]; plane++) {
    const place = plane - planes[0];
    const left = (place % across) * step_x + LABEL.left;
    const top = div(place, across) * (step_y + title) + LABEL.top + title;
    panels.push({ plane, left, top, rows, columns });
  }
  return { panels, cell, width, height: (step_y + title) * div(panels.length + across - 1, across) };
}

// The token under a point of the picture; null beside the squares. transposed: whether a key is wanted.
function token_under(placed, rank, transposed, x, y) {
  for (const { plane, left, top, rows, columns } of placed.panels) {
    const row = rows[0] + Math.floor((y - top) / placed.cell);
    const column = columns[0] + Math.floor((x - left) / placed.cell);
    if (row < rows[0] || row >= rows[1] || column < columns[0] || column >= columns[1]) continue;
    if (rank === 1) return [transposed ? column : row];
    return rank === 2 ? [row, column] : [plane, row, column];
  }
  return null;
}

// The squares of one panel, one after another: for each, what paint() needs to know.
function* squares(settings, view, sights, panel) {
  const { transposed, token, kernels, flat } = view;
  const rank = token.length;
  const [axis] = axes_of(settings);
  const same_group = (other) => other.every((t, a) => t % settings.dilation[a] === token[a] % settings.dilation[a]);
  for (let row = panel.rows[0]; row < panel.rows[1]; row++) {
    const row_sees = rank === 1 ? new Set(seen(axis, false, row)) : null;
    for (let column = panel.columns[0]; column < panel.columns[1]; column++) {
      if (rank > 1) {
        const other = [panel.plane, row, column].slice(-rank);
        const own = other.every((t, a) => t === token[a]);
        yield {
          row, column, own,
          seen: sees(sights, other),
          strong: true,
          group: same_group(other),
          mate: !transposed && sights.every(({ mates }, a) => mates.has(other[a])),
          leader: !transposed && sights.every(({ leader }, a) => leader === other[a]),
          brick: kernels ? brick_of(sights, other, flat) : null,
          patch: kernels && sights.every(({ box }, a) => box.rows.includes(other[a])),
        };
        continue;
      }
      const [line, other] = transposed ? [column, row] : [row, column];
      const in_patch = kernels && sights[0].box.rows.includes(line);
      yield {
        row, column,
        own: row === column && line === token[0],
        seen: row_sees.has(column),
        strong: line === token[0] || in_patch,
        group: column % axis.dilation === row % axis.dilation,
        mate: false,
        leader: !transposed && line === token[0] && sights[0].leader === column,
        brick: in_patch ? brick_of(sights, [other], flat) : null,
        patch: in_patch && line === other,
      };
    }
  }
}

function paint(context, square, x, y, cell, tones, dilated) {
  const size = cell - (cell > 6 ? 2 : 1);
  const fill = (tone, inset = 0) => {
    context.fillStyle = tones[tone];
    context.fillRect(x + inset, y + inset, size - 2 * inset, size - 2 * inset);
  };
  fill("empty");
  if (dilated && square.group && !square.seen) fill("group", Math.max(1, div(size, 3)));
  if (square.brick) fill(square.brick);
  if (square.brick === "masked" && size > 4) {
    context.strokeStyle = tones.hatch;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, y + size);
    context.lineTo(x + size, y);
    context.stroke();
  }
  const inset = square.brick ? Math.max(1, div(size, 5)) : 0;
  if (square.seen) fill(square.strong ? "seen" : "faint", inset);
  if (square.mate && !square.own && !square.leader) fill("query", div(size, 3));
  if (square.own) fill("query", square.seen ? 0 : Math.max(1, div(size, 4)));
  const ring = (tone, width) => {
    context.strokeStyle = tones[tone];
    context.lineWidth = width;
    context.strokeRect(x + width / 2, y + width / 2, size - width, size - width);
  };
  if (square.patch) ring("ink", size > 8 ? 2 : 1);
  if (square.leader && !square.own) ring("query", size > 8 ? 3 : 1);
}

// Numbers of tokens along a panel's edges, as many as have room.
function label(context, panel, cell, tones) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => each * cell >= 30) ?? 1000;
  context.fillStyle = tones.muted;
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  const marks = ([first, last]) => {
    const found = [];
    for (let token = first + ((step - (first % step)) % step); token < last; token += step) found.push(token);
    return found;
  };
  context.textAlign = "center";
  for (const column of marks(panel.columns)) {
    context.fillText(column, panel.left + (column - panel.columns[0] + 0.5) * cell, panel.top - 9);
  }
  context.textAlign = "right";
  for (const row of marks(panel.rows)) {
    context.fillText(row, panel.left - 6, panel.top + (row - panel.rows[0] + 0.5) * cell);
  }
}

// Draw it, and return where things are. view: {transposed, token, patch, flat, kernels, center}; the
// picture of a problem that is too large is cut out around `center`.
function draw(canvas, settings, view) {
  const width = Math.max(240, Math.floor(canvas.parentElement.clientWidth));
  const placed = layout(settings.shape, view.center, width, view.kernels ? LEAST_OF_BRICKS : LEAST);
  const sharp = globalThis.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * sharp), Math.round(placed.height * sharp)];
  [canvas.style.width, canvas.style.height] = [`${width}px`, `${placed.height}px`];
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  const names = ["empty", "group", "seen", "faint", "query", "full", "masked", "hatch", "ink", "muted"];
  const tones = Object.fromEntries(names.map((name) => [name, color(name)]));
  const sights = sight(settings, view.transposed, view.token, view.patch);
  const dilated = settings.dilation.some((d) => d > 1);
  for (const panel of placed.panels) {
    if (settings.shape.length === 3) {
      const current = panel.plane === view.token[0];
      context.fillStyle = tones[current ? "query" : "muted"];
      context.font = `${current ? 600 : 400} 12px system-ui, sans-serif`;
      [context.textAlign, context.textBaseline] = ["left", "middle"];
      context.fillText(`plane ${panel.plane}`, panel.left, panel.top - 26);
    }
    label(context, panel, placed.cell, tones);
    for (const square of squares(settings, view, sights, panel)) {
      const x = panel.left + (square.column - panel.columns[0]) * placed.cell;
      const y = panel.top + (square.row - panel.rows[0]) * placed.cell;
      paint(context, square, x, y, placed.cell, tones, dilated);
    }
  }
  return placed;
}
