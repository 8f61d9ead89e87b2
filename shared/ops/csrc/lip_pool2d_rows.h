// Rows of lip_pool2d in buffers: float (double for double) whatever the input's type and layout are, padded, and laid
// out so that what a window tap takes for neighbouring windows lies side by side. No loop over them has a remainder.
#pragma once

#include "lip_pool2d.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace d2ops {
namespace {

using at::vec::Vectorized;

// Buffer columns of one item of NCHW, channels of one of channels_last, and elements of a band of rows: some of the
// second-level cache. Fixed, so that results do not depend on the number of threads.
constexpr int64_t kGroupColumns = 512;
constexpr int64_t kChunkChannels = 64;
constexpr int64_t kBandElements = 24576;
constexpr int64_t kBandRows = 4;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// `count` runs of `length` values, `stride` apart in memory and `step` apart in a buffer row, the first at `start`.
struct Runs {
  int64_t count, length, stride, step, start;
};

// How the work is cut and how an item lies in a row.
// NCHW: an item is `together` planes side by side. Window c / sw uses a plane's padded column c as tap c % sw, the
// window before as tap c % sw + sw, and so on: split by c % sw ("phase"), all these are contiguous.
// channels_last: an item is `together` channels of one image, `step` apart, so they are contiguous as they are.
struct Plan {
  LipShape s;
  int64_t parts, together, step;
  int64_t phases, phase_size, phase_stride;  // phase_size: what is computed; the stride has room for reads beyond
  int64_t in_width, out_width, margin;       // margin: outputs in front of the first, which weigh nothing

  Plan(const LipShape& shape, int64_t vector) : s(shape) {
    const int64_t reach = (s.kw - 1) / s.sw;
    if (s.channels_last) {
      together = std::min(kChunkChannels, s.c);
      parts = s.n * ceil_div(s.c, together);
      step = ceil_div(together, vector) * vector;
      phases = 1;
      phase_size = std::max((s.ow - 1) * s.sw + s.kw, s.w + s.pw) * step;
      phase_stride = phase_size;
      out_width = s.ow * step;
      margin = 0;
    } else {
      step = std::max(s.ow + reach, ceil_div(s.w + s.pw, s.sw));
      together = std::clamp<int64_t>(kGroupColumns / (step * s.sw), 1, s.n * s.c);
      parts = ceil_div(s.n * s.c, together);
      phases = s.sw;
      phase_size = ceil_div(together * step, vector) * vector;
      phase_stride = phase_size + ceil_div(reach, vector) * vector;
      out_width = phase_size;
      margin = reach;
    }
    in_width = phases * phase_stride;
  }

  int64_t chunk(int64_t part) const {  // channels_last: the first channel
    return part % ceil_div(s.c, together) * together;
  }
  int64_t image(int64_t part) const {
    return part / ceil_div(s.c, together);
  }
  int64_t filled(int64_t part) const {  // planes or channels that this item has
    return std::min(together, s.channels_last ? s.c - chunk(part) : s.n * s.c - part * together);
  }

  // Offset in memory of row `h` of an item, in a map of `height` x `width`.
  int64_t offset(int64_t part, int64_t h, int64_t height, int64_t width) const {
    return s.channels_last ? (image(part) * height + h) * width * s.c + chunk(part)
                           : (part * together * height + h) * width;
  }
  Runs in_runs(int64_t part) const {
    return s.channels_last ? Runs{s.w, filled(part), s.c, step, s.pw * step}
                           : Runs{filled(part), s.w, s.h * s.w, step * s.sw, s.pw};
  }
  Runs out_runs(int64_t part, int64_t start) const {
    return s.channels_last ? Runs{s.ow, filled(part), s.c, step, 0}
                           : Runs{filled(part), s.ow, s.oh * s.ow, step, start};
  }
  int64_t band_rows(int64_t per_output) const {
    return std::max(kBandRows, kBandElements / (in_width * per_output));
  }
};

template <typename acc_t, typename scalar_t>
inline Vectorized<acc_t> load_vector(const scalar_t* from) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vectorized<acc_t>::loadu(from);
  } else {
    Vectorized<acc_t> value;
    at::vec::load_to_float<scalar_t>(from, value);
    return value;
  }
}

template <typename scalar_t, typename acc_t>
inline void load_run(const scalar_t* from, acc_t* to, int64_t n) {
  using Vec = Vectorized<acc_t>;
  int64_t i = 0;
  for (; i + Vec::size() <= n; i += Vec::size()) {
    load_vector<acc_t>(from + i).store(to + i);
  }
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    if (i < n) {
      Vec::loadu(from + i, static_cast<int>(n - i)).store(to + i, static_cast<int>(n - i));
    }
  } else {
    for (; i < n; ++i) {
      to[i] = static_cast<acc_t>(from[i]);
    }
  }
}

template <typename scalar_t, typename acc_t>
inline void store_run(const acc_t* from, scalar_t* to, int64_t n) {
  using Vec = Vectorized<acc_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    load_run(from, to, n);
  } else {
    int64_t i = 0;
    for (; i + 2 * Vec::size() <= n; i += 2 * Vec::size()) {
      at::vec::convert_from_float<scalar_t>(Vec::loadu(from + i), Vec::loadu(from + i + Vec::size())).store(to + i);
    }
    for (; i < n; ++i) {
      to[i] = static_cast<scalar_t>(from[i]);
    }
  }
}

// Memory times `weight`, a row, to a buffer row.
template <typename scalar_t, typename acc_t>
inline void pack_times(const scalar_t* from, const acc_t* weight, acc_t* row, const Runs& runs) {
  using Vec = Vectorized<acc_t>;
  for (int64_t r = 0; r < runs.count; ++r) {
    const scalar_t* run = from + r * runs.stride;
    const int64_t start = runs.start + r * runs.step;
    int64_t i = 0;
    for (; i + Vec::size() <= runs.length; i += Vec::size()) {
      (load_vector<acc_t>(run + i) * Vec::loadu(weight + start + i)).store(row + start + i);
    }
    if (i < runs.length) {
      const int n = static_cast<int>(runs.length - i);
      load_run(run + i, row + start + i, n);
      (Vec::loadu(row + start + i, n) * Vec::loadu(weight + start + i, n)).store(row + start + i, n);
    }
  }
}

// Memory to a buffer row. What lies between the runs stays.
template <typename scalar_t, typename acc_t>
inline void pack(const scalar_t* from, acc_t* row, const Runs& runs) {
  for (int64_t i = 0; i < runs.count; ++i) {
    load_run(from + i * runs.stride, row + runs.start + i * runs.step, runs.length);
  }
}

template <typename scalar_t, typename acc_t>
inline void unpack(const acc_t* row, scalar_t* to, const Runs& runs) {
  for (int64_t i = 0; i < runs.count; ++i) {
    store_run(row + runs.start + i * runs.step, to + i * runs.stride, runs.length);
  }
}

// exp for float is within 3e-7 (relative) of the exact one; it takes NaN for infinity, which callers must expect.
template <typename acc_t>
inline Vectorized<acc_t> fast_exp(const Vectorized<acc_t>& x) {
  if constexpr (std::is_same_v<acc_t, float>) {
    return x.exp_u20();
  } else {
    return x.exp();
  }
}

// l = gate * sigmoid(z) where a row holds z. The padding between the runs stays as it is.
template <typename acc_t>
inline void apply_gate(acc_t* row, const Runs& runs, acc_t gate) {
  using Vec = Vectorized<acc_t>;
  const Vec one(acc_t(1)), scale(gate);
  for (int64_t r = 0; r < runs.count; ++r) {
    acc_t* run = row + runs.start + r * runs.step;
    for (int64_t i = 0; i < runs.length; i += Vec::size()) {
      const int n = static_cast<int>(std::min<int64_t>(Vec::size(), runs.length - i));
      const Vec z = Vec::loadu(run + i, n);
      const Vec l = scale / (one + fast_exp<acc_t>(z.neg()));
      Vec::blendv(l, z, z != z).store(run + i, n);  // a NaN stays one
    }
  }
}

// value(i) for i = 0, vector, 2 vectors, ...: stored split into phases, as Plan says.
template <typename acc_t, typename F>
inline void split(const Plan& p, acc_t* scratch, acc_t* out, const F& value) {
  using Vec = Vectorized<acc_t>;
  constexpr int64_t size = Vec::size();
  if (p.phases == 1) {
    for (int64_t i = 0; i < p.phase_size; i += size) {
      value(i).store(out + i);
    }
  } else if (p.phases == 2) {
    for (int64_t i = 0; i < p.phase_size; i += size) {
      const auto [even, odd] = at::vec::deinterleave2<acc_t>(value(2 * i), value(2 * i + size));
      even.store(out + i);
      odd.store(out + p.phase_stride + i);
    }
  } else {
    for (int64_t i = 0; i < p.phases * p.phase_size; i += size) {
      value(i).store(scratch + i);
    }
    for (int64_t r = 0; r < p.phases; ++r) {
      for (int64_t i = 0; i < p.phase_size; ++i) {
        out[r * p.phase_stride + i] = scratch[i * p.phases + r];
      }
    }
  }
}

// The inverse of split, times `scale`, which is a row.
template <typename acc_t>
inline void merge(const Plan& p, const acc_t* phases, const acc_t* scale, acc_t* row) {
  using Vec = Vectorized<acc_t>;
  constexpr int64_t size = Vec::size();
  if (p.phases == 1) {
    for (int64_t i = 0; i < p.phase_size; i += size) {
      (Vec::loadu(phases + i) * Vec::loadu(scale + i)).store(row + i);
    }
  } else if (p.phases == 2) {
    for (int64_t i = 0; i < p.phase_size; i += size) {
      const auto [low, high] =
          at::vec::interleave2<acc_t>(Vec::loadu(phases + i), Vec::loadu(phases + p.phase_stride + i));
      (low * Vec::loadu(scale + 2 * i)).store(row + 2 * i);
      (high * Vec::loadu(scale + 2 * i + size)).store(row + 2 * i + size);
    }
  } else {
    for (int64_t r = 0; r < p.phases; ++r) {
      for (int64_t i = 0; i < p.phase_size; ++i) {
        row[i * p.phases + r] = phases[r * p.phase_stride + i] * scale[i * p.phases + r];
      }
    }
  }
}

// One exp(l - top) per element, with the largest logit of a band of rows as `top`, serves all windows whose sum of
// these is at least exp(-kReach): a float exp keeps its precision down to exp(-87), so what it drops there is below
// exp(-57) of the window's sum. Other bands are done again, with a top for each window.
constexpr double kReach = 30;

// The largest of `count` rows, `stride` apart. Padding is -inf. A NaN may be passed over: its sums are no numbers.
template <typename acc_t>
inline acc_t largest(const acc_t* rows, int64_t count, int64_t stride, int64_t width) {
  using Vec = Vectorized<acc_t>;
  Vec a(-std::numeric_limits<acc_t>::infinity()), b = a;
  for (int64_t r = 0; r < count; ++r) {
    const acc_t* row = rows + r * stride;
    int64_t i = 0;
    for (; i + 2 * Vec::size() <= width; i += 2 * Vec::size()) {
      a = at::vec::clamp_min(Vec::loadu(row + i), a);
      b = at::vec::clamp_min(Vec::loadu(row + i + Vec::size()), b);
    }
    for (; i < width; i += Vec::size()) {
      a = at::vec::clamp_min(Vec::loadu(row + i), a);
    }
  }
  acc_t values[Vec::size()];
  at::vec::clamp_min(b, a).store(values);
  return *std::max_element(values, values + Vec::size());
}

// f(n as a constant) where n is one of the usual numbers of taps, so that loops over them unroll; f(0) otherwise.
template <typename F>
inline void with_constant(int64_t n, const F& f) {
  switch (n) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    default:
      return f(std::integral_constant<int, 0>());
  }
}

}  // namespace
}  // namespace d2ops
