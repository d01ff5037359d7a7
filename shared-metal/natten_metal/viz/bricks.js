// The work of the Metal kernels, as metal/tiles.py counts it: a patch is ROWS rows, a brick COLUMNS adjacent columns.
// ROWS, COLUMNS, PATCHES (the shapes of a patch by rank), LONGEST_BOX and FLAT_GAIN are written by page.py.

// Columns that any row [first, last) of a dilation group sees, and those that all of them see.
function span(axis, transposed, [first, last], [lowest, highest], n) {
  let [low, common_high] = row_interval(axis, transposed, first, n);
  let [common_low, high] = row_interval(axis, transposed, last - 1, n);
  low = Math.max(low, lowest);
  common_low = Math.max(common_low, lowest);
  return { low, common_low, common_high: Math.min(common_high, highest), high: Math.max(Math.min(high, highest), low) };
}

// Steps and full steps of all patches on one axis: bricks along x, rows of the box on the other axes.
function axis_bricks(axis, transposed, extent, along_x) {
  let [steps, full] = [0, 0];
  for (let group = 0; group < axis.dilation; group++) {
    const [[begin, end], columns] = at_hand(axis, transposed).map((side) => positions(...side, group, axis.dilation));
    const n = group_length(axis.full, group, axis.dilation);
    for (let first = begin; first < end; first += extent) {
      const rows = [first, Math.min(first + extent, end)];
      const { low, common_low, common_high, high } = span(axis, transposed, rows, columns, n);
      if (!along_x) {
        steps += high - low;
        full += Math.max(0, common_high - common_low);
        continue;
      }
      steps += div(high - low + COLUMNS - 1, COLUMNS);
      const first_full = low + Math.max(0, div(common_low - low + COLUMNS - 1, COLUMNS)) * COLUMNS;
      full += Math.max(0, div(common_high - first_full, COLUMNS));
    }
  }
  return [steps, full];
}

// The lengths of the boxes of all patches on an axis: the longest, their sum, and how many leave each remainder.
function axis_lengths(axis, transposed, extent) {
  const remainders = Array(COLUMNS).fill(0);
  let [longest, total] = [0, 0];
  for (let group = 0; group < axis.dilation; group++) {
    const [[begin, end], columns] = at_hand(axis, transposed).map((side) => positions(...side, group, axis.dilation));
    const n = group_length(axis.full, group, axis.dilation);
    for (let first = begin; first < end; first += extent) {
      const { low, high } = span(axis, transposed, [first, Math.min(first + extent, end)], columns, n);
      remainders[(high - low) % COLUMNS]++;
      total += high - low;
      longest = Math.max(longest, high - low);
    }
  }
  return { longest, total, remainders };
}

// Bricks that run on from one row of a box into the next, as metal/flat.py counts them.
function count_flat(settings, patch, transposed) {
  let [columns, remainders] = [1n, [0n, 1n, ...Array(COLUMNS - 2).fill(0n)]];
  for (const [a, axis] of axes_of(settings).entries()) {
    const { total, remainders: own } = axis_lengths(axis, transposed, patch[a]);
    columns *= BigInt(total);
    const before = remainders;
    remainders = Array(COLUMNS).fill(0n);
    for (const [i, times] of before.entries()) {
      for (const [j, often] of own.entries()) remainders[(i * j) % COLUMNS] += times * BigInt(often);
    }
  }
  const spare = remainders.reduce((found, times, i) => found + BigInt((COLUMNS - i) % COLUMNS) * times, 0n);
  return (columns + spare) / BigInt(COLUMNS);
}

// Whether every position in a box fits its word. On one axis, nothing could run on.
function fits(settings, patch, transposed) {
  const longest = LONGEST_BOX[settings.shape.length];
  if (longest === undefined) return false;
  return axes_of(settings).every((axis, a) => axis_lengths(axis, transposed, patch[a]).longest <= longest);
}

// The bricks {executed, full} of one batch item and query head. patch: rows on each axis.
function count_bricks(settings, patch, transposed) {
  const last = settings.shape.length - 1;
  const counts = axes_of(settings).map((axis, a) => axis_bricks(axis, transposed, patch[a], a === last));
  return { executed: product(counts.map(([steps]) => steps)), full: product(counts.map(([, full]) => full)) };
}

// The same, in rows of their own or flat; then all have a mask.
function bricks_of(settings, patch, transposed, flat) {
  if (flat) return { executed: count_flat(settings, patch, transposed), full: 0n };
  return count_bricks(settings, patch, transposed);
}

// The patch with the fewest executed bricks, and of those the widest; and whether its bricks are flat, which they are
// where that saves enough. patch, flat: what is wanted, null for the best.
function best_walk(settings, transposed, patch, flat) {
  const best = (patches, runs_on) => {
    const counted = patches.map((each) => [each, bricks_of(settings, each, transposed, runs_on).executed]);
    counted.sort(([a, x], [b, y]) => Number(x - y) || b.at(-1) - a.at(-1));
    return counted[0];
  };
  const patches = patch === null ? PATCHES[settings.shape.length] : [patch];
  const [run, in_rows] = best(patches, false);
  const fitting = flat === false ? [] : patches.filter((each) => fits(settings, each, transposed));
  if (!fitting.length) return { patch: run, flat: false };
  const [flat_patch, on] = best(fitting, true);
  const saves = Number(on) * FLAT_GAIN <= Number(in_rows);
  return flat || saves ? { patch: flat_patch, flat: true } : { patch: run, flat: false };
}

// The patch that holds the row at a token of one axis: {rows, common, columns}, tokens each; columns in the order of
// the box, common: whether all rows see them.
function patch_at(axis, transposed, extent, token) {
  const row = token + axis.query_start;
  const group = row % axis.dilation;
  const [[begin, end], columns] = at_hand(axis, transposed).map((side) => positions(...side, group, axis.dilation));
  const n = group_length(axis.full, group, axis.dilation);
  const p = div(row, axis.dilation);
  const first = p - ((p - begin) % extent);
  const rows = [first, Math.min(first + extent, end)];
  const { low, common_low, common_high, high } = span(axis, transposed, rows, columns, n);
  const tokens = (from, to) => Array.from({ length: to - from }, (_, k) => token_at(axis, group, from + k));
  const common = Array.from({ length: high - low }, (_, k) => low + k >= common_low && low + k < common_high);
  return { rows: tokens(...rows), columns: tokens(low, high), common };
}

// The bricks of a patch {executed, full}: boxes of its axes, from patch_at.
function patch_bricks(boxes, flat) {
  const sizes = boxes.map(({ columns }) => columns.length);
  const ceiling = (columns) => div(columns + COLUMNS - 1, COLUMNS);
  if (flat) return { executed: BigInt(ceiling(sizes.reduce((total, size) => total * size, 1))), full: 0n };
  const counts = boxes.map(({ common }, a) => {
    if (a < boxes.length - 1) return common.filter(Boolean).length;
    const starts = [...common.keys()].filter((k) => k % COLUMNS === 0);
    return starts.filter((k) => k + COLUMNS <= common.length && common.slice(k, k + COLUMNS).every(Boolean)).length;
  });
  return { executed: product([...sizes.slice(0, -1), ceiling(sizes.at(-1))]), full: product(counts) };
}

// The numbers of a problem, for one head of one batch item; ratios are plain numbers, counts BigInt.
function work(settings, { patch, flat }, transposed) {
  const axes = axes_of(settings);
  const tokens = product(settings.shape);
  const pairs = product(axes.map(axis_pairs));
  const { executed, full } = bricks_of(settings, patch, transposed, flat);
  const computed = executed * BigInt(ROWS * COLUMNS);
  const share = (a, b) => (a === 0n ? 0 : Number((a * 10n ** 12n) / b) / 1e12);
  return {
    tokens,
    pairs,
    executed,
    full,
    sparsity: 1 - share(pairs, tokens * tokens),
    ratio: share(computed, pairs),
    ideal: share(tokens * tokens, pairs),
    with_bricks: share(tokens * tokens, computed),
  };
}
