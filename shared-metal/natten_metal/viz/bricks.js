// The work of the Metal kernels, as metal/tiles.py counts it: a patch is ROWS rows, a brick COLUMNS adjacent columns.
// ROWS, COLUMNS and PATCHES, the shapes of a patch by rank, are written by page.py.

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

// The bricks {executed, full} of one batch item and query head. patch: rows on each axis.
function count_bricks(settings, patch, transposed) {
  const last = settings.shape.length - 1;
  const counts = axes_of(settings).map((axis, a) => axis_bricks(axis, transposed, patch[a], a === last));
  return { executed: product(counts.map(([steps]) => steps)), full: product(counts.map(([, full]) => full)) };
}

// The shape of a patch with the fewest executed bricks, and of those the widest.
function best_patch(settings, transposed) {
  const counted = PATCHES[settings.shape.length].map((patch) => [patch, count_bricks(settings, patch, transposed)]);
  counted.sort(([a, x], [b, y]) => Number(x.executed - y.executed) || b.at(-1) - a.at(-1));
  return counted[0][0];
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

// How many bricks of a patch need no mask: boxes of its axes, from patch_at.
function full_bricks(boxes) {
  const counts = boxes.map(({ common }, a) => {
    if (a < boxes.length - 1) return common.filter(Boolean).length;
    const starts = [...common.keys()].filter((k) => k % COLUMNS === 0);
    return starts.filter((k) => k + COLUMNS <= common.length && common.slice(k, k + COLUMNS).every(Boolean)).length;
  });
  return product(counts);
}

// The numbers of a problem, for one head of one batch item; ratios are plain numbers, counts BigInt.
function work(settings, patch, transposed) {
  const axes = axes_of(settings);
  const tokens = product(settings.shape);
  const pairs = product(axes.map(axis_pairs));
  const { executed, full } = count_bricks(settings, patch, transposed);
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
