// One token and what it sees, in the form that the picture and the words need.

// What one query sees, or, transposed, what sees one key, in the form that drawing needs: sets of tokens by axis.
function sight(settings, transposed, token, patch) {
  return axes_of(settings).map((axis, a) => {
    const { mates, leader } = stride_group(axis, token[a]);
    const box = patch_at(axis, transposed, patch[a], token[a]);
    const columns = new Map();
    for (const [k, column] of box.columns.entries()) if (!columns.has(column)) columns.set(column, k);
    return { seen: new Set(seen(axis, transposed, token[a])), mates: new Set(mates), leader, box, columns };
  });
}

// Whether a token is seen: on every axis.
const sees = (sights, token) => sights.every((sight, a) => sight.seen.has(token[a]));

// The brick that holds a token: null outside the box, "full" if it needs no mask because all rows of the patch see all
// of it, else "masked", as all flat bricks are.
function brick_of(sights, token, flat) {
  const last = sights.length - 1;
  let full = !flat;
  for (const [a, { box, columns }] of sights.entries()) {
    const k = columns.get(token[a]);
    if (k === undefined) return null;
    if (a < last) {
      full &&= box.common[k];
      continue;
    }
    const brick = box.common.slice(k - (k % COLUMNS), k - (k % COLUMNS) + COLUMNS);
    full &&= brick.length === COLUMNS && brick.every(Boolean);
  }
  return full ? "full" : "masked";
}
