// The CPU kernels against the reference: random problems of every operation, dtype and rank, with any strides; bit for
// bit the same for any number of threads, from several threads at once, and in a forked child.
//
//   test_cpu [--problems N] [--seed S] [--no-fork]
//   test_cpu --regions                               calls on threads of the host, without NATTEN_NUM_THREADS
//
// NATTEN_CPU_ISA and NATTEN_NUM_THREADS are set by the caller. Prints what fails and a summary; returns 1 if anything
// failed.
#include "threads.h"

static void test_fused_on(Random& random, Fused& f) {
  const natten_problem& p = f.p;
  Results r = outputs(random, f);
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "fused");
  const Truth t = fused_truth(f);
  compare(p, r.out, t.out, "out", "fused"), compare(p, r.lse, t.lse, "lse", "fused");
  compare(p, r.query, t.query, "dQ", "fused"), compare(p, r.key, t.key, "dK", "fused");
  compare(p, r.value, t.value, "dV", "fused");
  compare(p, r.additional_keys, t.additional_keys, "additional dK", "fused");
  compare(p, r.additional_values, t.additional_values, "additional dV", "fused");
  if (f.has_rpb) compare(p, r.rpb, t.rpb, "dRpb", "fused");
  for (int threads = 1; threads <= natten_cpu_threads(); ++threads) {
    Results again = r;
    for (Array* a : again.all()) {
      for (int64_t i = 0; i < a->count(); ++i) a->set(i, NAN);
    }
    if (!f.has_rpb) again.rpb = r.rpb;
    check(run_fused(f, again, threads) == NATTEN_OK, "status", "fused again");
    for (size_t i = 0; i < r.all().size(); ++i) {
      check(again.all()[i]->bytes == r.all()[i]->bytes, "the result depends on the number of threads", "fused");
    }
  }
}

static void test_fused(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  if (pick(random, 0, 2) == 0) mask_keys(random, f);
  test_fused_on(random, f);
}

// --- split operations --------------------------------------------------------------------------------------

static void test_qk(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  Array logits = make_array(random, p.dtype, dims_of(p, p.query_shape, p.heads, slots(p)), pick(random, 0, 1));
  Array gradient = make_array(random, p.dtype, logits.dims, pick(random, 0, 2));
  fill(random, gradient);
  Array dq = output_like(random, f.query), dk = output_like(random, f.key);
  Array db = make_array(random, f.rpb.dtype, f.rpb.dims, 0);
  natten_tensors t = {};
  t.query = tensor_of(f.query), t.key = tensor_of(f.key), t.logits = tensor_of(logits);
  if (f.has_rpb) t.rpb = flat(f.rpb);
  check(natten_qk(&p, &t) == NATTEN_OK, "status", "qk");
  t = {};
  t.logits_grad = tensor_of(gradient), t.query = tensor_of(f.query), t.key = tensor_of(f.key);
  t.query_grad = tensor_of(dq), t.key_grad = tensor_of(dk);
  if (f.has_rpb) t.rpb_grad = flat(db);
  check(natten_qk_backward(&p, &t) == NATTEN_OK, "status", "qk backward");
  Values found(size_t(logits.count()), -INFINITY), query = zeros(dq), key = zeros(dk), rpb = zeros(db);
  each_pair(p, [&](int64_t query_row, int64_t key_row, int64_t slot, int64_t entry) {
    found[size_t(slot)] = logit(f, query_row, false, key_row, entry);
    add_row(query, query_row, p.scale * gradient.get(slot), f.key, key_row);
    add_row(key, key_row, p.scale * gradient.get(slot), f.query, query_row);
    rpb[size_t(entry)] += gradient.get(slot);
  });
  compare(p, logits, found, "logits", "qk");
  compare(p, dq, query, "dQ", "qk"), compare(p, dk, key, "dK", "qk");
  if (f.has_rpb) compare(p, db, rpb, "dRpb", "qk");
}

static void test_av(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  Array attn = make_array(random, p.dtype, dims_of(p, p.query_shape, p.heads, slots(p)), pick(random, 0, 1));
  for (int64_t i = 0; i < attn.count(); ++i) attn.set(i, NAN);  // slots without a key stay NaN
  each_pair(p, [&](int64_t, int64_t, int64_t slot, int64_t) { attn.set(slot, pick(random, -8, 8) / 4.0); });
  Array out = output_like(random, f.out_grad), da = output_like(random, attn), dv = output_like(random, f.value);
  natten_tensors t = {};
  t.attn = tensor_of(attn), t.value = tensor_of(f.value), t.out = tensor_of(out);
  check(natten_av(&p, &t) == NATTEN_OK, "status", "av");
  t.out = {}, t.out_grad = tensor_of(f.out_grad), t.attn_grad = tensor_of(da), t.value_grad = tensor_of(dv);
  check(natten_av_backward(&p, &t) == NATTEN_OK, "status", "av backward");
  Values sum = zeros(out), gradient = zeros(da), value = zeros(dv);
  each_pair(p, [&](int64_t query_row, int64_t key_row, int64_t slot, int64_t) {
    add_row(sum, query_row, attn.get(slot), f.value, key_row);
    gradient[size_t(slot)] = dot(f.out_grad, query_row, f.value, key_row);
    add_row(value, key_row, attn.get(slot), f.out_grad, query_row);
  });
  compare(p, out, sum, "out", "av");
  compare(p, da, gradient, "dA", "av"), compare(p, dv, value, "dV", "av");
}

// --- large numbers, and many of them -----------------------------------------------------------------------

// Attention of `queries` queries on `keys` keys: sums of several stretches of blocks, with additional keys among them.
// The last tenth of the keys is twice as large, so that the top of most rows grows once more in the last stretch
static void test_many(Random& random, int64_t queries, int64_t keys) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = 2, p.kv_heads = 1, p.head_dim = 3, p.head_dim_v = 2;
  p.additional = 5, p.scale = -0.5;
  p.query_shape[0] = queries, p.key_shape[0] = keys, p.full_shape[0] = p.kernel_size[0] = std::max(queries, keys);
  p.stride[0] = p.dilation[0] = 1;
  Fused f = random_fused(random, p);
  f.key = make_array(random, p.dtype, f.key.dims, pick(random, 0, 1)), fill(random, f.key);
  for (int64_t i = f.key.count() - keys / 10 * p.head_dim; i < f.key.count(); ++i) f.key.set(i, 2 * f.key.get(i));
  test_fused_on(random, f);
}

// Split operations over windows of several stretches
static void test_many_slots(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 1, p.head_dim = p.head_dim_v = 1;
  p.scale = 0.5, set_length(p, 0, 2100), p.kernel_size[0] = 2100, p.stride[0] = p.dilation[0] = 1;
  test_av(random, p);
}

// Equal keys with logits of about 1e5, where a rounded lse is off by 0.004: weights must still be 1 / (number of keys)
static void test_large_logits(Random& random, int dtype) {
  natten_problem p = {};
  p.dtype = dtype, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 1, p.head_dim = p.head_dim_v = 4, p.scale = 0.7;
  set_length(p, 0, 90), p.kernel_size[0] = 7, p.stride[0] = p.dilation[0] = 1;
  Fused f = random_fused(random, p);
  f.has_rpb = dtype != NATTEN_FLOAT32;
  f.key = make_array(random, dtype, f.key.dims, 0);
  for (int64_t i = 0; i < f.key.count(); ++i) f.key.set(i, i % 4 ? 0.25 : 220.0);
  f.query = make_array(random, dtype, f.query.dims, 0);
  fill(random, f.query);
  for (int64_t i = 0; i < f.query.count(); i += 4) f.query.set(i, 640.0 + 4 * double(i % 16));
  for (int64_t i = 0; i < f.rpb.count(); ++i) f.rpb.set(i, 0.0);
  Results r = outputs(random, f);
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "large logits");
  const Truth t = fused_truth(f);
  compare(p, r.out, t.out, "out", "large logits"), compare(p, r.value, t.value, "dV", "large logits");
  // The sums of these cancel, so errors are roundings of numbers as large as the keys and queries
  const auto compare_large = [&](const Array& found, const Values& truth, const char* what, double size) {
    const double allowed = (16 * rounding_of(dtype) + 64 * rounding_of(scalar_dtype(p))) * size;
    for (int64_t i = 0; i < found.count(); ++i) {
      check(std::fabs(found.get(i) - truth[size_t(i)]) <= allowed, what, "large logits");
    }
  };
  compare_large(r.query, t.query, "dQ", 0.7 * 16 * 220 * 4), compare_large(r.key, t.key, "dK", 0.7 * 16 * 7 * 700 * 4);
  if (f.has_rpb) compare_large(r.rpb, t.rpb, "dRpb", 16 * 90);
}

// Rows whose logits are all -inf, as rpb is: out 0, lse -inf and gradients 0; and they add nothing to other gradients
static void test_dead_rows(Random& random, int dtype) {
  natten_problem p = {};
  p.dtype = dtype, p.rank = 1, p.batch = 1, p.heads = 2, p.kv_heads = 1, p.head_dim = p.head_dim_v = 5, p.scale = 0.25;
  set_length(p, 0, 80), p.kernel_size[0] = 5, p.stride[0] = p.dilation[0] = 1;
  Fused f = random_fused(random, p);
  f.has_rpb = true;
  for (int64_t i = 0; i < rpb_entries(p); ++i) f.rpb.set(i, -INFINITY);  // of head 0
  Results r = outputs(random, f), alone = r;
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "empty rows");
  Fused second = f;  // with gradients of 0 for the results of head 0
  second.out_grad = make_array(random, dtype, f.out_grad.dims, 0);
  second.lse_grad = make_array(random, f.lse_grad.dtype, f.lse_grad.dims, 0);
  for (int64_t i = 0; i < f.out_grad.count(); ++i) second.out_grad.set(i, i / 5 % 2 ? f.out_grad.get(i) : 0.0);
  for (int64_t i = 0; i < f.lse_grad.count(); ++i) second.lse_grad.set(i, i % 2 ? f.lse_grad.get(i) : 0.0);
  check(run_fused(second, alone, 0) == NATTEN_OK, "status", "empty rows");
  for (int64_t i = 0; i < 80; ++i) {
    check(r.lse.get(2 * i) == -INFINITY && std::isfinite(r.lse.get(2 * i + 1)), "lse", "empty rows");
    for (int64_t at = 10 * i; at < 10 * i + 5; ++at) {
      check(r.out.get(at) == 0 && r.query.get(at) == 0, "out, dQ", "empty rows");
    }
  }
  for (int64_t i = 0; i < rpb_entries(p); ++i) check(r.rpb.get(i) == 0, "dRpb", "empty rows");
  check(r.key.bytes == alone.key.bytes && r.value.bytes == alone.value.bytes, "dK, dV", "empty rows");
  for (int64_t i = 0; i < r.key.count(); ++i) check(std::isfinite(r.key.get(i)), "dK", "empty rows");
}

// A NaN in one key reaches the queries that see it, and none far away
static void test_nan(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 1, p.head_dim = p.head_dim_v = 8;
  set_length(p, 0, 400), p.kernel_size[0] = 9, p.stride[0] = p.dilation[0] = 1, p.scale = 0.25;
  Fused f = random_fused(random, p);
  f.has_rpb = false;
  Results clean = outputs(random, f), dirty = clean;
  check(run_fused(f, clean, 0) == NATTEN_OK, "status", "nan");
  f.key = make_array(random, p.dtype, f.key.dims, 0);
  fill(random, f.key);
  check(run_fused(f, clean, 0) == NATTEN_OK, "status", "nan");
  f.key.set(200 * 8, NAN);
  check(run_fused(f, dirty, 0) == NATTEN_OK, "status", "nan");
  for (int64_t i = 0; i < 400; ++i) {
    const bool sees = i >= 196 && i <= 204;
    if (sees) check(std::isnan(dirty.lse.get(i)) && std::isnan(dirty.out.get(i * 8)), "a query that sees it", "nan");
    if (std::llabs(i - 200) > 64) check(dirty.lse.get(i) == clean.lse.get(i), "a query far away", "nan");
  }
}

static void test_refusals(Random& random) {
  const Fused sound = large_fused(random);
  Fused f = sound;
  Results r = outputs(random, f), before = r;
  const auto refused = [&](const char* what) {
    check(run_fused(f, r, 0) == NATTEN_BAD_PROBLEM, what, "refusals");
    for (size_t i = 0; i < r.all().size(); ++i) check(r.all()[i]->bytes == before.all()[i]->bytes, what, "written");
    f.p = sound.p;
  };
  f.p.rank = 4, refused("rank 4"), f.p.rank = 0, refused("rank 0");
  f.p.dtype = 4, refused("dtype 4");
  f.p.kv_heads = 3, refused("4 heads on 3");
  f.p.head_dim = 0, refused("no channels");
  f.p.kernel_size[1] = 25, refused("a window beyond the axis");
  f.p.stride[0] = 6, refused("a stride beyond the window");
  f.p.dilation[0] = 5, refused("a dilated window beyond the axis");
  f.p.key_shape[0] = 23, refused("lengths that differ, rank 2");
  set_length(f.p, 0, int64_t(1) << 31), refused("an axis of 2^31");
  f.p.query_start[0] = 1, refused("queries beyond the axis");
  f.p.key_start[1] = -1, refused("keys before the axis");
  f.p.full_shape[0] = int64_t(1) << 31, refused("a piece of an axis of 2^31");
  f.p.full_shape[0] = 25, f.p.query_start[0] = 1, refused("a window beyond the keys at hand");
  f.p.full_shape[0] = 25, f.p.key_start[0] = 1, refused("a window before the keys at hand");
  // Of 100 tokens, queries 38 to 61 and keys 30 to 68: with a dilation of 4 and 5 keys, 61 alone needs another, 69
  f.p.full_shape[0] = 100, f.p.query_start[0] = 38, f.p.key_start[0] = 30, f.p.dilation[0] = 4;
  f.p.key_shape[0] = 39, refused("a window beyond the keys of one dilation group");
  f.p.heads = f.p.kv_heads = f.p.head_dim = int64_t(1) << 28, refused("more elements than memory has bytes");
  check(natten_av(nullptr, nullptr) == NATTEN_BAD_PROBLEM, "no problem", "refusals");
  const natten_problem p = large_fused(random).p;
  const natten_tensors none = {};
#define REFUSED(name) check(natten_##name(&p, &none) == NATTEN_BAD_PROBLEM, "no tensors", #name);
  NATTEN_FUNCTIONS(REFUSED)
}

// Every tensor is one number with strides of 0, so only what backward keeps for each row would need memory: terabytes
static void test_memory(Random& random) {
  Fused f = random_fused(random, large_fused(random).p);
  f.has_rpb = false, f.p.additional = 0;
  Results r = outputs(random, f);
  for (Array* a : {&f.query, &f.key, &f.value, &f.out_grad, &f.lse_grad, &r.out, &r.lse, &r.query, &r.key, &r.value}) {
    std::fill(a->strides.begin(), a->strides.end(), 0);
  }
  f.p.batch = int64_t(1) << 24, f.p.heads = f.p.kv_heads = 4096;
  natten_problem p = f.p;
  natten_tensors t = {};
  t.query = t.key = t.value = t.out = t.out_grad = tensor_of(f.query);
  t.lse = t.lse_grad = tensor_of(f.lse_grad, false), t.query_grad = tensor_of(r.query);
  const int status = natten_backward(&p, &t);
  check(status == NATTEN_NO_MEMORY, "terabytes were allocated", "memory");
}

// More patches than one range of the pool holds, on several heads
static void test_long(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 2, p.head_dim = p.head_dim_v = 64;
  set_length(p, 0, 700), p.kernel_size[0] = 3, p.stride[0] = p.dilation[0] = 1, p.scale = 0.125;
  test_fused(random, p);
}

// Windows so large that patches of several panels are worth it; lengths whose last panels are full, partly filled and
// empty; more additional keys than a block of columns or a patch of rows holds
static void test_panels(Random& random) {
  const int64_t lengths[3][3] = {{75}, {21, 13}, {7, 17, 6}}, windows[3][3] = {{40}, {9, 7}, {3, 13, 4}};
  for (int rank = 1; rank <= 3; ++rank) {
    for (int stride = 1; stride <= 2; ++stride) {
      natten_problem p = {};
      p.dtype = NATTEN_FLOAT32, p.rank = rank, p.batch = 1, p.heads = 2, p.kv_heads = 1, p.head_dim = p.head_dim_v = 20;
      p.additional = stride == 2 ? 150 : 0, p.scale = 0.25;
      for (int a = 0; a < rank; ++a) {
        set_length(p, a, lengths[rank - 1][a]), p.kernel_size[a] = windows[rank - 1][a];
        p.stride[a] = stride, p.dilation[a] = 1, p.is_causal[a] = stride == 2 && a == 0;
      }
      test_fused(random, p), test_qk(random, p), test_av(random, p);
      for (int a = 0; a < rank; ++a) cut(random, p, a, a ? 1 : 5, int(lengths[rank - 1][a]), 2);
      test_fused(random, p), test_qk(random, p), test_av(random, p);
    }
  }
}

// Windows one column wide, so that every column is a run of its own: more runs than are kept for a patch
static void test_runs(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 2, p.batch = 1, p.heads = 2, p.kv_heads = 1, p.head_dim = p.head_dim_v = 3;
  p.additional = 2, p.scale = 0.25;
  set_length(p, 0, 420), set_length(p, 1, 1), p.kernel_size[0] = 350, p.kernel_size[1] = 1;
  for (int a = 0; a < 2; ++a) p.stride[a] = p.dilation[a] = 1;
  test_fused(random, p);
}

// Pieces in the middle and at the end of axes of the maximum length: their offsets need 64 bits
static void test_far(Random& random) {
  const int64_t longest = int64_t(1) << 29;
  for (int rank = 1; rank <= 3; ++rank) {
    natten_problem p = {};
    p.dtype = NATTEN_FLOAT32, p.rank = rank, p.batch = 2, p.heads = 2, p.kv_heads = 1, p.head_dim = p.head_dim_v = 9;
    p.scale = 0.25;
    for (int a = 0; a < rank; ++a) {
      set_length(p, a, longest), p.kernel_size[a] = 4 - a, p.stride[a] = 1, p.dilation[a] = 1 + a;
      const int end = int(a == 1 ? longest / 2 : longest);
      cut(random, p, a, end - 40 / (rank * rank), end, 3);
    }
    test_fused(random, p), test_qk(random, p), test_av(random, p);
    // A dilation so large that patches side by side are more than 2^31 tokens apart, of which few groups are at hand
    const int x = rank - 1;
    p.kernel_size[x] = 1, p.dilation[x] = (int64_t(1) << 28) + 3;
    cut(random, p, x, int(longest) - 9, int(longest), 3);
    test_fused(random, p), test_qk(random, p), test_av(random, p);
  }
}

// An empty batch: nothing is written, except zeros to gradients that are sums over the batch
static void test_empty_batch(Random& random) {
  Fused f = large_fused(random);
  f.p.batch = 0;
  Results r = outputs(random, f);
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "empty batch");
  for (int64_t i = 0; i < r.rpb.count(); ++i) check(r.rpb.get(i) == 0, "dRpb", "empty batch");
  check(untouched_between(r.rpb), "dRpb", "empty batch");
  for (unsigned char byte : r.out.bytes) check(byte == kUntouched, "out", "empty batch");
}

int main(int argc, char** argv) {
  int problems = 200, seed = 1;
  bool forks = true, regions = false;
  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--problems") && i + 1 < argc) problems = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--no-fork")) forks = false;
    else if (!strcmp(argv[i], "--regions")) regions = true, problems = 0;
    else return fprintf(stderr, "usage: test_cpu [--problems N] [--seed S] [--no-fork] [--regions]\n"), 2;
  }
  Random random{uint64_t(seed)};
  check(natten_cpu_abi() == NATTEN_CPU_ABI, "the library was built from another header", "abi");
  for (int i = 0; i < problems; ++i) {
    const bool attention = i % 8 == 7;
    const natten_problem p = attention ? random_attention(random) : i % 2 ? random_piece(random) : random_problem(random);
    test_fused(random, p);
    if (!attention || p.query_shape[0] == p.key_shape[0]) test_qk(random, p), test_av(random, p);
  }
  test_long(random);
  test_many(random, 7, 2300), test_many(random, 2300, 6), test_many_slots(random);
  for (int dtype = 0; dtype < 4; ++dtype) test_large_logits(random, dtype), test_dead_rows(random, dtype);
  test_panels(random), test_runs(random), test_far(random);
  regions ? test_regions(random) : test_limited(random);
  test_callers(random);
  if (forks) test_fork(random);
  test_nan(random);
  test_refusals(random);
  test_memory(random);
  test_empty_batch(random);
  printf("%s, %d threads, %d problems, seed %d: %d failures; largest errors, as fractions of what is allowed: "
         "float16 %.2f, bfloat16 %.2f, float32 %.2f, float64 %.2f\n", natten_cpu_isa(), natten_cpu_threads(), problems,
         seed, failures, largest[0], largest[1], largest[2], largest[3]);
  return failures ? 1 : 0;
}
