// A problem: its rules, its axes, and what a query sees on them, as problem/checks/window.py, wrap.py, interval.py and
// mask.py have it in Python.
//
// settings: {shape, kernel_size, stride, dilation, is_causal, wrap}, an entry per axis each.

const NUMBERS = ["shape", "kernel_size", "stride", "dilation"];
const SWITCHES = ["is_causal", "wrap"];
const LONGEST = 1 << 20; // tokens of an axis: more take too long to count

const product = (values) => values.reduce((total, value) => total * BigInt(value), 1n);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const tuple = (values) => (values.length === 1 ? `(${values[0]},)` : `(${values.join(", ")})`);

// The first rule that is broken: {axis, names, message}; null if none is. The words are those of Python's ValueError,
// except for a field without a whole number, a length below 1 where it wraps, and what this page cannot count.
function broken_rule(settings) {
  const face = `na${settings.shape.length}d`;
  const { shape, kernel_size, stride, dilation, is_causal, wrap } = settings;
  const broken = (axis, names, message) => ({ axis, names, message: `${face}: ${message}` });
  const axes = [...shape.keys()];
  for (const name of NUMBERS) {
    const axis = axes.find((a) => !Number.isInteger(settings[name][a]));
    if (axis !== undefined) return broken(axis, [name], `${name} must be whole numbers; axis ${axis} has none`);
  }
  const empty = axes.find((a) => shape[a] < 1);
  if (empty !== undefined) return broken(empty, ["shape"], `query shape must not be zero; got ${tuple(shape)}`);
  for (const axis of axes) {
    if (shape[axis] > LONGEST) {
      return broken(axis, ["shape"], `this page counts up to ${LONGEST} tokens; axis ${axis} has ${shape[axis]}`);
    }
  }
  for (const name of ["kernel_size", "stride", "dilation"]) {
    const axis = axes.find((a) => settings[name][a] < 1);
    if (axis !== undefined) {
      return broken(axis, [name], `${name} must be at least 1; axis ${axis} has ${settings[name][axis]}`);
    }
  }
  for (const axis of axes) {
    const [w, s] = [kernel_size[axis], stride[axis]];
    if (s > w) {
      const names = ["kernel_size", "stride"];
      return broken(axis, names, `stride must not exceed kernel_size; axis ${axis} has ${s} > ${w}`);
    }
  }
  for (const axis of axes) {
    const [length, w, d] = [shape[axis], kernel_size[axis], dilation[axis]];
    if (w * d > length) {
      const found = `axis ${axis} has ${w} * ${d} = ${w * d} > ${length}`;
      const names = ["shape", "kernel_size", "dilation"];
      return broken(axis, names, `kernel_size * dilation must not exceed the axis length; ${found}`);
    }
  }
  for (const axis of axes.filter((a) => wrap[a])) {
    const [length, s, d] = [shape[axis], stride[axis], dilation[axis]];
    if (is_causal[axis]) {
      const message = `an axis cannot both wrap and be causal; axis ${axis} has wrap and is_causal`;
      return broken(axis, ["is_causal", "wrap"], message);
    }
    if (length % (s * d)) {
      const found = `axis ${axis} has length ${length} and ${s} * ${d} = ${s * d}`;
      const rule = "the length of an axis that wraps must be a multiple of stride * dilation";
      return broken(axis, ["shape", "stride", "dilation", "wrap"], `${rule}; ${found}`);
    }
  }
  return null;
}

// The longer axis for one that wraps: see problem/wrap.py.
function unroll(length, w, s, d) {
  const before = Math.max(div(w, 2) - div(s, 2), 0) * d;
  const after = Math.max(w - div(w, 2) - (s - div(s, 2)), 0) * d;
  const start = div(w + s - 1, s) * s * d;
  return { full: length + 2 * start, start, before, after };
}

// The axes of legal settings; those that wrap are unrolled, so that no window at hand reaches an end.
function axes_of(settings) {
  return settings.shape.map((length, a) => {
    const names = [settings.kernel_size[a], settings.stride[a], settings.dilation[a]];
    const [w, stride, dilation] = names;
    const axis = { length, window: w, stride, dilation, causal: settings.is_causal[a] };
    const whole = { queries: length, keys: length, full: length, query_start: 0, key_start: 0 };
    if (!settings.wrap[a]) return { ...axis, ...whole };
    const { full, start, before, after } = unroll(length, ...names);
    const keys = length + before + after;
    return { ...axis, queries: length, keys, full, query_start: start, key_start: start - before };
  });
}

// [first, last): the tokens [start, start + count) of a dilation group, as positions inside the group.
function positions(start, count, group, dilation) {
  return [group_length(start, group, dilation), group_length(start + count, group, dilation)];
}

// Rows and columns at hand, [start, count] in tokens each.
function at_hand(axis, transposed) {
  const [queries, keys] = [[axis.query_start, axis.queries], [axis.key_start, axis.keys]];
  return transposed ? [keys, queries] : [queries, keys];
}

// [low, high): the columns, out of n in the group, that the row at position p sees.
function row_interval(axis, transposed, p, n) {
  return (transposed ? inverse : window)(p, n, axis.window, axis.stride, axis.causal);
}

// The token 0 .. length - 1 at a position of a dilation group of the unrolled axis.
function token_at(axis, group, position) {
  const away = (position * axis.dilation + group - axis.query_start) % axis.length;
  return away < 0 ? away + axis.length : away;
}

// The columns that the row at a token sees on one axis, as tokens in the order of the window: the keys of a query, or,
// transposed, the queries of a key.
function seen(axis, transposed, token) {
  const [[start, count], columns] = at_hand(axis, transposed);
  const found = [];
  // On an axis that wraps, a key near an end is at hand more than once.
  let row = token + axis.query_start;
  while (row - axis.length >= start) row -= axis.length;
  for (; row < start + count; row += axis.length) {
    const group = row % axis.dilation;
    const [lowest, highest] = positions(...columns, group, axis.dilation);
    const n = group_length(axis.full, group, axis.dilation);
    const [low, high] = row_interval(axis, transposed, div(row, axis.dilation), n);
    for (let p = Math.max(low, lowest); p < Math.min(high, highest); p++) found.push(token_at(axis, group, p));
  }
  return found;
}

// [start, end) of the tokens that share the window of a query, and the leader, whose window it is, in tokens: those of
// the stride group are `dilation` apart.
function stride_group(axis, token) {
  const group = (token + axis.query_start) % axis.dilation;
  const p = div(token + axis.query_start, axis.dilation);
  const n = group_length(axis.full, group, axis.dilation);
  const last = positions(...at_hand(axis, false)[0], group, axis.dilation)[1];
  const mates = [];
  for (let mate = p - (p % axis.stride); mate < Math.min(p - (p % axis.stride) + axis.stride, last); mate++) {
    mates.push(token_at(axis, group, mate));
  }
  // A window of one key holds the leader alone.
  const [leader] = window(p, n, 1, axis.stride, axis.causal);
  return { mates, leader: token_at(axis, group, leader) };
}

// (query, key) pairs of one axis.
function axis_pairs(axis) {
  let pairs = 0;
  for (let group = 0; group < axis.dilation; group++) {
    const [first, last] = positions(axis.key_start, axis.keys, group, axis.dilation);
    const [begin, end] = positions(axis.query_start, axis.queries, group, axis.dilation);
    if (!axis.causal) {
      pairs += (end - begin) * Math.min(axis.window, last - first);
      continue;
    }
    const n = group_length(axis.full, group, axis.dilation);
    for (let p = begin; p < end; p++) {
      const [low, high] = row_interval(axis, false, p, n);
      pairs += Math.min(high, last) - low;
    }
  }
  return pairs;
}
