// Which keys a query attends to, and which queries attend to a key: one axis. The functions of problem/window.py, with
// the same names and lines; a test holds them equal. Everything counts positions inside a dilation group of n tokens.

const div = (a, b) => Math.floor(a / b);

function group_length(length, group, dilation) {
  return div(length - group + dilation - 1, dilation);
}

// [start, end): the key positions that the query at position p attends to.
function window(p, n, w, s, causal) {
  if (causal) {
    const leader = Math.min(div(p, s) * s + s - 1, n - 1);
    return [Math.max(leader - w + 1, 0), p + 1];
  }
  const leader = Math.min(div(p, s) * s + div(s, 2), n - 1);
  const start = Math.max(Math.min(leader - div(w, 2), n - w), 0);
  return [start, start + w];
}

// [low, high): the query positions whose windows hold the key at position j.
function inverse(j, n, w, s, causal) {
  if (causal) {
    const high = j + w >= n ? n : (div(j + w - s, s) + 1) * s;
    return [j, Math.min(high, n)];
  }
  const groups = div(n + s - 1, s);
  const reach = j + div(w, 2);
  const last = j + w >= n ? groups : div(reach - div(s, 2), s) + 1;
  const need = Math.max(reach - w + 1 - div(s, 2), 0);
  const first = j + 1 <= w ? 0 : Math.min(div(need + s - 1, s), groups - 1);
  return [first * s, Math.min(last * s, n)];
}
