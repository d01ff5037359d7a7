// The CPU kernels against the reference: random problems of every operation, dtype and rank, with any strides; bit for
// bit the same for any number of threads, from several threads at once, and in a forked child.
//
//   test_cpu [--problems N] [--seed S] [--no-fork]
//
// Set NATTEN_CPU_ISA and NATTEN_NUM_THREADS outside. Prints what fails and returns 1, else a summary.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "reference.h"

static int failures = 0;
static double closest[4] = {0, 0, 0, 0};  // largest error found per dtype, in parts of what is allowed

static void check(bool holds, const char* what, const char* where) {
  if (holds) return;
  ++failures;
  if (failures < 40) printf("FAILED %s: %s\n", where, what);
}

// --- random problems ---------------------------------------------------------------------------------------

static natten_problem random_problem(Random& random) {
  natten_problem p = {};
  p.dtype = pick(random, 0, 3), p.rank = pick(random, 1, 3), p.batch = pick(random, 1, 2);
  p.kv_heads = pick(random, 1, 2), p.heads = p.kv_heads * pick(random, 1, 3);
  const int dims[] = {1, 2, 3, 5, 8, 16, 17, 20, 33, 64};
  p.head_dim = dims[pick(random, 0, 9)], p.head_dim_v = dims[pick(random, 0, 9)];
  p.additional = pick(random, 0, 2) ? 0 : pick(random, 1, 21);
  const double scales[] = {0.5, 0.125, 0.0, -0.25};
  p.scale = scales[pick(random, 0, 3)];
  const int longest[] = {70, 13, 7};
  for (int a = 0; a < p.rank; ++a) {
    const int length = pick(random, 1, longest[p.rank - 1]);
    p.query_shape[a] = p.key_shape[a] = length;
    p.dilation[a] = pick(random, 0, 2) ? 1 : pick(random, 1, length);
    p.kernel_size[a] = pick(random, 1, int(length / p.dilation[a]));
    p.stride[a] = pick(random, 0, 1) ? 1 : pick(random, 1, int(p.kernel_size[a]));
    p.is_causal[a] = pick(random, 0, 2) == 0;
  }
  return p;
}

// Full attention: lengths of their own
static natten_problem random_attention(Random& random) {
  natten_problem p = random_problem(random);
  p.rank = 1, p.additional = 0;
  p.query_shape[0] = pick(random, 1, 70), p.key_shape[0] = pick(random, 1, 70);
  p.kernel_size[0] = std::max(p.query_shape[0], p.key_shape[0]);
  p.stride[0] = p.dilation[0] = 1;
  return p;
}

static int scalar_dtype(const natten_problem& p) { return p.dtype == NATTEN_FLOAT64 ? NATTEN_FLOAT64 : NATTEN_FLOAT32; }

static std::vector<int64_t> dims_of(const natten_problem& p, const int64_t* shape, int64_t heads, int64_t channels) {
  std::vector<int64_t> dims = {p.batch};
  dims.insert(dims.end(), shape, shape + p.rank);
  dims.push_back(heads);
  if (channels >= 0) dims.push_back(channels);
  return dims;
}

static Fused random_fused(Random& random, const natten_problem& p) {
  Fused f;
  f.p = p;
  const auto input = [&](int dtype, const std::vector<int64_t>& dims, int most) {
    Array a = make_array(random, dtype, dims, pick(random, 0, most));
    fill(random, a);
    return a;
  };
  f.query = input(p.dtype, dims_of(p, p.query_shape, p.heads, p.head_dim), 2);
  f.key = input(p.dtype, dims_of(p, p.key_shape, p.kv_heads, p.head_dim), 2);
  f.value = input(p.dtype, dims_of(p, p.key_shape, p.kv_heads, p.head_dim_v), 2);
  f.additional_keys = input(p.dtype, {p.batch, p.additional, p.kv_heads, p.head_dim}, 2);
  f.additional_values = input(p.dtype, {p.batch, p.additional, p.kv_heads, p.head_dim_v}, 2);
  f.out_grad = input(p.dtype, dims_of(p, p.query_shape, p.heads, p.head_dim_v), 2);
  f.lse_grad = input(scalar_dtype(p), dims_of(p, p.query_shape, p.heads, -1), 2);
  f.bias = input(scalar_dtype(p), {p.heads, bias_entries(p)}, 0);
  bool plain = p.query_shape[0] == p.key_shape[0];
  for (int a = 0; a < p.rank; ++a) plain = plain && p.stride[a] == 1;
  f.has_bias = plain && pick(random, 0, 1);
  return f;
}

// --- running the library -----------------------------------------------------------------------------------

struct Results {
  Array out, lse, query, key, value, additional_keys, additional_values, bias;

  std::vector<Array*> all() { return {&out, &lse, &query, &key, &value, &additional_keys, &additional_values, &bias}; }
};

static Array output_like(Random& random, const Array& like) {
  return make_array(random, like.dtype, like.dims, pick(random, 0, 1));
}

static Results outputs(Random& random, const Fused& f) {
  Results r;
  r.out = output_like(random, f.out_grad), r.lse = output_like(random, f.lse_grad);
  r.query = output_like(random, f.query), r.key = output_like(random, f.key), r.value = output_like(random, f.value);
  r.additional_keys = output_like(random, f.additional_keys);
  r.additional_values = output_like(random, f.additional_values);
  r.bias = make_array(random, f.bias.dtype, f.bias.dims, 0);
  return r;
}

static natten_tensor flat(Array& a) { return {a.bytes.data(), {0, 0, 0, 0, 0, 0}}; }

// Forward and backward; r keeps what it held where a function fails
static int run_fused(Fused& f, Results& r, int threads) {
  natten_problem p = f.p;
  p.threads = threads;
  natten_tensor q = tensor_of(f.query), k = tensor_of(f.key), v = tensor_of(f.value), o = tensor_of(r.out);
  natten_tensor ak = tensor_of(f.additional_keys), av = tensor_of(f.additional_values), b = flat(f.bias);
  natten_tensor og = tensor_of(f.out_grad), lg = tensor_of(f.lse_grad, false), l = tensor_of(r.lse, false);
  natten_tensor dq = tensor_of(r.query), dk = tensor_of(r.key), dv = tensor_of(r.value), db = flat(r.bias);
  natten_tensor dak = tensor_of(r.additional_keys), dav = tensor_of(r.additional_values);
  natten_tensor *keys = p.additional ? &ak : nullptr, *values = p.additional ? &av : nullptr;
  natten_tensor* bias = f.has_bias ? &b : nullptr;
  const int status = natten_forward(&p, &q, &k, &v, keys, values, bias, &o, &l);
  if (status != NATTEN_OK) return status;
  return natten_backward(&p, &og, &lg, &q, &k, &v, keys, values, bias, &o, &l, &dq, &dk, &dv,
                         p.additional ? &dak : nullptr, p.additional ? &dav : nullptr, f.has_bias ? &db : nullptr);
}

static void compare(const natten_problem& p, const Array& found, const Values& truth, const char* what,
                    const char* where) {
  double top = 0, apart = 0;
  for (double x : truth) top = std::max(top, std::isfinite(x) ? std::fabs(x) : 0.0);
  for (int64_t i = 0; i < found.count(); ++i) {
    const double x = found.get(i), y = truth[size_t(i)];
    if (x == y) continue;
    apart = std::max(apart, std::isfinite(x) && std::isfinite(y) ? std::fabs(x - y) : INFINITY);
  }
  // 16 roundings of the dtype, 64 of the accumulator, and room for sums that cancel
  const double allowed = (16 * rounding_of(p.dtype) + 64 * rounding_of(scalar_dtype(p))) * std::max(top, 1.0);
  closest[p.dtype] = std::max(closest[p.dtype], apart / allowed);
  char text[200];
  snprintf(text, sizeof(text), "%s is %.3g away, %.3g allowed (dtype %d, rank %d)", what, apart, allowed, p.dtype,
           p.rank);
  check(apart <= allowed, text, where);
  check(untouched_between(found), what, "something between its elements was written");
}

static void test_fused(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  Results r = outputs(random, f);
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "fused");
  const Truth t = fused_truth(f);
  compare(p, r.out, t.out, "out", "fused"), compare(p, r.lse, t.lse, "lse", "fused");
  compare(p, r.query, t.query, "dQ", "fused"), compare(p, r.key, t.key, "dK", "fused");
  compare(p, r.value, t.value, "dV", "fused");
  compare(p, r.additional_keys, t.additional_keys, "additional dK", "fused");
  compare(p, r.additional_values, t.additional_values, "additional dV", "fused");
  if (f.has_bias) compare(p, r.bias, t.bias, "dBias", "fused");
  for (int threads = 1; threads <= natten_cpu_threads(); ++threads) {
    Results again = r;
    for (Array* a : again.all()) {
      for (int64_t i = 0; i < a->count(); ++i) a->set(i, NAN);
    }
    if (!f.has_bias) again.bias = r.bias;
    check(run_fused(f, again, threads) == NATTEN_OK, "status", "fused again");
    for (size_t i = 0; i < r.all().size(); ++i) {
      check(again.all()[i]->bytes == r.all()[i]->bytes, "another number of threads, another result", "fused");
    }
  }
}

// --- split operations --------------------------------------------------------------------------------------

static void test_qk(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  Array logits = make_array(random, p.dtype, dims_of(p, p.query_shape, p.heads, slots(p)), pick(random, 0, 1));
  Array gradient = make_array(random, p.dtype, logits.dims, pick(random, 0, 2));
  fill(random, gradient);
  Array dq = output_like(random, f.query), dk = output_like(random, f.key);
  Array db = make_array(random, f.bias.dtype, f.bias.dims, 0);
  natten_tensor q = tensor_of(f.query), k = tensor_of(f.key), b = flat(f.bias), l = tensor_of(logits);
  natten_tensor g = tensor_of(gradient), tq = tensor_of(dq), tk = tensor_of(dk), tb = flat(db);
  check(natten_qk(&p, &q, &k, f.has_bias ? &b : nullptr, &l) == NATTEN_OK, "status", "qk");
  check(natten_qk_backward(&p, &g, &q, &k, &tq, &tk, f.has_bias ? &tb : nullptr) == NATTEN_OK, "status", "qk backward");
  Values found(size_t(logits.count()), -INFINITY), query = zeros(dq), key = zeros(dk), bias = zeros(db);
  each_pair(p, [&](int64_t query_row, int64_t key_row, int64_t slot, int64_t entry) {
    found[size_t(slot)] = logit(f, query_row, false, key_row, entry);
    add_row(query, query_row, p.scale * gradient.get(slot), f.key, key_row);
    add_row(key, key_row, p.scale * gradient.get(slot), f.query, query_row);
    bias[size_t(entry)] += gradient.get(slot);
  });
  compare(p, logits, found, "logits", "qk");
  compare(p, dq, query, "dQ", "qk"), compare(p, dk, key, "dK", "qk");
  if (f.has_bias) compare(p, db, bias, "dBias", "qk");
}

static void test_av(Random& random, const natten_problem& p) {
  Fused f = random_fused(random, p);
  Array attn = make_array(random, p.dtype, dims_of(p, p.query_shape, p.heads, slots(p)), pick(random, 0, 1));
  for (int64_t i = 0; i < attn.count(); ++i) attn.set(i, NAN);  // masked slots stay so
  each_pair(p, [&](int64_t, int64_t, int64_t slot, int64_t) { attn.set(slot, pick(random, -8, 8) / 4.0); });
  Array out = output_like(random, f.out_grad), da = output_like(random, attn), dv = output_like(random, f.value);
  natten_tensor a = tensor_of(attn), v = tensor_of(f.value), o = tensor_of(out), g = tensor_of(f.out_grad);
  natten_tensor ta = tensor_of(da), tv = tensor_of(dv);
  check(natten_av(&p, &a, &v, &o) == NATTEN_OK, "status", "av");
  check(natten_av_backward(&p, &g, &a, &v, &ta, &tv) == NATTEN_OK, "status", "av backward");
  Values sum = zeros(out), gradient = zeros(da), value = zeros(dv);
  each_pair(p, [&](int64_t query_row, int64_t key_row, int64_t slot, int64_t) {
    add_row(sum, query_row, attn.get(slot), f.value, key_row);
    gradient[size_t(slot)] = dot(f.out_grad, query_row, f.value, key_row);
    add_row(value, key_row, attn.get(slot), f.out_grad, query_row);
  });
  compare(p, out, sum, "out", "av");
  compare(p, da, gradient, "dA", "av"), compare(p, dv, value, "dV", "av");
}

// --- threads, processes, errors ----------------------------------------------------------------------------

// Large enough that every call wants the pool
static Fused large_fused(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 2, p.batch = 2, p.heads = 4, p.kv_heads = 2, p.head_dim = p.head_dim_v = 16;
  p.additional = 3, p.scale = 0.25;
  for (int a = 0; a < 2; ++a) {
    p.query_shape[a] = p.key_shape[a] = 24, p.kernel_size[a] = 5, p.stride[a] = p.dilation[a] = 1;
  }
  Fused f = random_fused(random, p);
  f.has_bias = true;
  return f;
}

static void test_callers(Random& random) {
  Fused f = large_fused(random);
  Results expected = outputs(random, f);
  check(run_fused(f, expected, 1) == NATTEN_OK, "status", "callers");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      Fused own = f;
      for (int round = 0; round < 3; ++round) {
        Results r = expected;
        r.out.bytes.assign(r.out.bytes.size(), kUntouched);
        wrong[size_t(c)] += run_fused(own, r, c % 3) != NATTEN_OK;
        for (size_t i = 0; i < r.all().size(); ++i) wrong[size_t(c)] += r.all()[i]->bytes != expected.all()[i]->bytes;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int count : wrong) check(count == 0, "a caller among several got another result", "callers");
}

static void test_fork(Random& random) {
  Fused f = large_fused(random);
  Results expected = outputs(random, f), r = expected;
  check(run_fused(f, expected, 0) == NATTEN_OK, "status", "fork");
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a child that hangs is killed, which is not a clean exit
    const bool same = run_fused(f, r, 0) == NATTEN_OK && r.key.bytes == expected.key.bytes;
    exit(same ? 0 : 1);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child", "fork");
  check(run_fused(f, r, 0) == NATTEN_OK && r.key.bytes == expected.key.bytes, "the parent", "fork");
}

// A NaN in one key reaches the queries that see it, and none whose patch lies elsewhere
static void test_nan(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 1, p.head_dim = p.head_dim_v = 8;
  p.query_shape[0] = p.key_shape[0] = 400, p.kernel_size[0] = 9, p.stride[0] = p.dilation[0] = 1, p.scale = 0.25;
  Fused f = random_fused(random, p);
  f.has_bias = false;
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
  f.p.rank = 4, refused("rank 4");
  f.p.rank = 0, refused("rank 0");
  f.p.dtype = 4, refused("dtype 4");
  f.p.kv_heads = 3, refused("4 heads on 3");
  f.p.head_dim = 0, refused("no channels");
  f.p.kernel_size[1] = 25, refused("a window beyond the axis");
  f.p.stride[0] = 6, refused("a stride beyond the window");
  f.p.dilation[0] = 5, refused("a dilated window beyond the axis");
  f.p.key_shape[0] = 23, refused("lengths that differ, rank 2");
  f.p.query_shape[0] = f.p.key_shape[0] = int64_t(1) << 31, refused("an axis of 2^31");
  f.p.heads = f.p.kv_heads = f.p.head_dim = int64_t(1) << 28, refused("more elements than memory has bytes");
  check(natten_av(nullptr, nullptr, nullptr, nullptr) == NATTEN_BAD_PROBLEM, "no problem", "refusals");
}

// Every tensor is one number read over and over: only the rows' deltas would need memory
static void test_memory(Random& random) {
  Fused f = random_fused(random, large_fused(random).p);
  f.has_bias = false, f.p.additional = 0;
  Results r = outputs(random, f);
  for (Array* a : {&f.query, &f.key, &f.value, &f.out_grad, &f.lse_grad, &r.out, &r.lse, &r.query, &r.key, &r.value}) {
    std::fill(a->strides.begin(), a->strides.end(), 0);
  }
  f.p.batch = int64_t(1) << 24, f.p.heads = f.p.kv_heads = 4096;
  natten_problem p = f.p;
  natten_tensor t = tensor_of(f.query), s = tensor_of(f.lse_grad, false), dq = tensor_of(r.query);
  const int status = natten_backward(&p, &t, &s, &t, &t, &t, nullptr, nullptr, nullptr, &t, &s, &dq, nullptr, nullptr,
                                     nullptr, nullptr, nullptr);
  check(status == NATTEN_NO_MEMORY, "terabytes", "memory");
}

// More patches than one range of the pool holds, on several heads
static void test_long(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 1, p.batch = 1, p.heads = p.kv_heads = 2, p.head_dim = p.head_dim_v = 64;
  p.query_shape[0] = p.key_shape[0] = 700, p.kernel_size[0] = 3, p.stride[0] = p.dilation[0] = 1, p.scale = 0.125;
  test_fused(random, p);
}

// Windows so large that patches of several pieces pay; lengths that leave the last pieces whole, in part and without
// rows; more additional keys than a block of columns or a patch of rows holds
static void test_pieces(Random& random) {
  const int64_t lengths[3][3] = {{75}, {21, 13}, {7, 17, 6}}, windows[3][3] = {{40}, {9, 7}, {3, 13, 4}};
  for (int rank = 1; rank <= 3; ++rank) {
    for (int stride = 1; stride <= 2; ++stride) {
      natten_problem p = {};
      p.dtype = NATTEN_FLOAT32, p.rank = rank, p.batch = 1, p.heads = 2, p.kv_heads = 1, p.head_dim = p.head_dim_v = 20;
      p.additional = stride == 2 ? 150 : 0, p.scale = 0.25;
      for (int a = 0; a < rank; ++a) {
        p.query_shape[a] = p.key_shape[a] = lengths[rank - 1][a], p.kernel_size[a] = windows[rank - 1][a];
        p.stride[a] = stride, p.dilation[a] = 1, p.is_causal[a] = stride == 2 && a == 0;
      }
      test_fused(random, p), test_qk(random, p), test_av(random, p);
    }
  }
}

// No batch: no output, and gradients that are sums over the batch are 0
static void test_no_batch(Random& random) {
  Fused f = large_fused(random);
  f.p.batch = 0;
  Results r = outputs(random, f);
  check(run_fused(f, r, 0) == NATTEN_OK, "status", "no batch");
  for (int64_t i = 0; i < r.bias.count(); ++i) check(r.bias.get(i) == 0, "dBias", "no batch");
  check(untouched_between(r.bias), "dBias", "no batch");
  for (unsigned char byte : r.out.bytes) check(byte == kUntouched, "out", "no batch");
}

int main(int argc, char** argv) {
  int problems = 200, seed = 1;
  bool forks = true;
  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--problems") && i + 1 < argc) problems = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--no-fork")) forks = false;
    else return fprintf(stderr, "usage: test_cpu [--problems N] [--seed S] [--no-fork]\n"), 2;
  }
  Random random{uint64_t(seed)};
  check(natten_cpu_abi() == NATTEN_CPU_ABI, "the header is another one", "abi");
  for (int i = 0; i < problems; ++i) {
    const natten_problem p = i % 8 == 7 ? random_attention(random) : random_problem(random);
    test_fused(random, p);
    if (p.query_shape[0] == p.key_shape[0]) test_qk(random, p), test_av(random, p);
  }
  test_long(random);
  test_pieces(random);
  test_callers(random);
  if (forks) test_fork(random);
  test_nan(random);
  test_refusals(random);
  test_memory(random);
  test_no_batch(random);
  printf("%s, %d threads, %d problems, seed %d: %d failures; largest error, in parts of what is allowed: float16 %.2f, "
         "bfloat16 %.2f, float32 %.2f, float64 %.2f\n", natten_cpu_isa(), natten_cpu_threads(), problems, seed,
         failures, closest[0], closest[1], closest[2], closest[3]);
  return failures ? 1 : 0;
}
