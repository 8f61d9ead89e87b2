// Forward on the CPU: y_o = sum of e_i x_i / sum of e_i over a window, e = exp(l - top). Rows come in bands. Mostly one
// top serves a band (see kReach): then e is formed once per input, not once per input and window, and the sums run down
// the columns first.
#pragma once

#include "lip_pool2d_rows.h"

#include <cmath>

namespace d2ops {
namespace {

template <typename scalar_t>
struct Forward {
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;

  const Plan& p;
  const LipShape& s;
  const scalar_t *x, *logit;
  scalar_t* y;
  acc_t* lse;  // nullptr: not kept
  int64_t band, rows, first = 0, last = 0;  // input rows of the current band
  std::vector<acc_t> l_rows, e_rows, x_rows, l_split, x_split, scratch, y_row, total_row;
  std::vector<const acc_t*> l_taps, x_taps;
  bool finite = true;

  Forward(const Plan& plan, const scalar_t* x, const scalar_t* logit, scalar_t* y, acc_t* lse)
      : p(plan), s(plan.s), x(x), logit(logit), y(y), lse(lse), band(plan.band_rows(s.sh)),
        rows(std::min((band - 1) * s.sh + s.kh, s.h)), e_rows(rows * p.in_width), l_split(s.kh * p.in_width),
        x_split(s.kh * p.in_width), scratch(p.in_width), y_row(p.out_width), total_row(p.out_width),
        l_taps(s.kh * s.kw), x_taps(s.kh * s.kw) {
    clear();
  }

  // Padding weighs nothing: logit -inf, value 0.
  void clear() {
    l_rows.assign(rows * p.in_width, -std::numeric_limits<acc_t>::infinity());
    x_rows.assign(rows * p.in_width, acc_t(0));
  }

  void item(int64_t part, int64_t oh_begin, int64_t oh_end) {
    if (p.filled(part) < p.together) {
      clear();
    }
    first = std::max<int64_t>(oh_begin * s.sh - s.ph, 0);
    last = std::min((oh_end - 1) * s.sh - s.ph + s.kh, s.h);
    const Runs runs = p.in_runs(part);
    for (int64_t h = first; h < last; ++h) {
      acc_t* row = &l_rows[(h - first) * p.in_width];
      pack(logit + p.offset(part, h, s.h, s.w), row, runs);
      if (s.gate > 0) {
        apply_gate(row, runs, static_cast<acc_t>(s.gate));
      }
    }
    const acc_t top = largest(l_rows.data(), last - first, p.in_width, p.phases * p.phase_size);
    if (!common_top(part, oh_begin, oh_end, top)) {
      top_per_window(part, oh_begin, oh_end);
    }
  }

  // First and one past the last buffer row of a window.
  std::pair<int64_t, int64_t> window(int64_t oh) const {
    return {std::max(oh * s.sh - s.ph, first) - first, std::min(oh * s.sh - s.ph + s.kh, last) - first};
  }

  // False where some window is too far below the top, or not a number.
  bool common_top(int64_t part, int64_t oh_begin, int64_t oh_end, acc_t top) {
    const Runs runs = p.in_runs(part);
    const int64_t used = p.phases * p.phase_size;
    const Vec shift(top);
    for (int64_t h = first; h < last; ++h) {
      const int64_t row = (h - first) * p.in_width;
      const acc_t* l = &l_rows[row];
      acc_t* e = &e_rows[row];
      for (int64_t i = 0; i < used; i += Vec::size()) {
        fast_exp<acc_t>(Vec::loadu(l + i) - shift).store(e + i);
      }
      pack_times(x + p.offset(part, h, s.h, s.w), e, &x_rows[row], runs);
    }
    for (int64_t oh = oh_begin; oh < oh_end; ++oh) {
      const auto [begin, end] = window(oh);
      with_constant(end - begin, [&](auto n) {
        column_sums<n>(&e_rows[begin * p.in_width], end - begin, l_split.data());
        column_sums<n>(&x_rows[begin * p.in_width], end - begin, x_split.data());
      });
      const int64_t taps = find_taps(1);
      with_constant(taps, [&](auto n) { ratios<n>(taps); });
      if (!all_reached(p.out_runs(part, 0))) {
        return false;
      }
      for (int64_t i = 0; lse != nullptr && i < p.out_width; i += Vec::size()) {
        (shift + Vec::loadu(&total_row[i]).log()).store(&total_row[i]);
      }
      write(part, oh);
    }
    return true;
  }

  void top_per_window(int64_t part, int64_t oh_begin, int64_t oh_end) {
    for (int64_t h = first; h < last; ++h) {
      pack(x + p.offset(part, h, s.h, s.w), &x_rows[(h - first) * p.in_width], p.in_runs(part));
    }
    for (int64_t oh = oh_begin; oh < oh_end; ++oh) {
      const auto [begin, end] = window(oh);
      for (int64_t r = begin; r < end; ++r) {
        const acc_t *l = &l_rows[r * p.in_width], *v = &x_rows[r * p.in_width];
        const int64_t row = (r - begin) * p.in_width;
        split(p, scratch.data(), &l_split[row], [=](int64_t i) { return Vec::loadu(l + i); });
        split(p, scratch.data(), &x_split[row], [=](int64_t i) { return Vec::loadu(v + i); });
      }
      softmaxes(find_taps(end - begin));
      write(part, oh);
    }
  }

  template <int kCount>
  void column_sums(const acc_t* from, int64_t count, acc_t* to) {
    const int64_t n = kCount > 0 ? kCount : count, stride = p.in_width;
    split(p, scratch.data(), to, [=](int64_t i) {
      Vec total = Vec::loadu(from + i);
      for (int64_t r = 1; r < n; ++r) {
        total = total + Vec::loadu(from + r * stride + i);
      }
      return total;
    });
  }

  // Where the taps of the first window lie, of `count` split rows.
  int64_t find_taps(int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t t = 0; t < s.kw; ++t) {
        const int64_t at = s.channels_last ? t * p.step : t % s.sw * p.phase_stride + t / s.sw;
        l_taps[r * s.kw + t] = &l_split[r * p.in_width + at];
        x_taps[r * s.kw + t] = &x_split[r * p.in_width + at];
      }
    }
    return count * s.kw;
  }

  // f(place in the split rows, place in the output row) for each vector of outputs.
  template <typename F>
  void each(const F& f) const {
    const int64_t blocks = s.channels_last ? s.ow : 1, size = s.channels_last ? p.step : p.out_width;
    const int64_t jump = s.sw * p.step;
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = 0; i < size; i += Vec::size()) {
        f(b * jump + i, b * size + i);
      }
    }
  }

  template <int kTaps>
  void ratios(int64_t taps) {
    const int64_t n = kTaps > 0 ? kTaps : taps;
    std::array<const acc_t*, std::max(kTaps, 1)> l_known, x_known;
    std::copy_n(l_taps.begin(), kTaps, l_known.begin());
    std::copy_n(x_taps.begin(), kTaps, x_known.begin());
    const acc_t *const *ls = kTaps > 0 ? l_known.data() : l_taps.data();
    const acc_t *const *xs = kTaps > 0 ? x_known.data() : x_taps.data();
    acc_t *totals = total_row.data(), *values = y_row.data();
    each([=](int64_t in, int64_t out) {
      Vec total = Vec::loadu(ls[0] + in), value = Vec::loadu(xs[0] + in);
      for (int64_t t = 1; t < n; ++t) {
        total = total + Vec::loadu(ls[t] + in);
        value = value + Vec::loadu(xs[t] + in);
      }
      (value / total).store(values + out);
      total.store(totals + out);
    });
  }

  void softmaxes(int64_t taps) {
    each([&](int64_t in, int64_t out) {
      Vec top = Vec::loadu(l_taps[0] + in);
      for (int64_t t = 1; t < taps; ++t) {
        top = at::vec::maximum(top, Vec::loadu(l_taps[t] + in));
      }
      Vec total(acc_t(0)), value(acc_t(0));
      for (int64_t t = 0; t < taps; ++t) {
        const Vec e = (Vec::loadu(l_taps[t] + in) - top).exp();
        total = total + e;
        value = value + e * Vec::loadu(x_taps[t] + in);
      }
      (value / total).store(&y_row[out]);
      (top + total.log()).store(&total_row[out]);
    });
  }

  // Whether all sums in total_row reach exp(-kReach).
  bool all_reached(const Runs& runs) const {
    const Vec least(static_cast<acc_t>(std::exp(-kReach))), one(acc_t(1));
    Vec low = one;
    for (int64_t r = 0; r < runs.count; ++r) {
      for (int64_t i = 0; i < runs.length; i += Vec::size()) {
        const int64_t n = std::min<int64_t>(Vec::size(), runs.length - i);
        low = at::vec::minimum(low, Vec::set(one, Vec::loadu(&total_row[r * runs.step + i]), n));
      }
    }
    return (low >= least).zero_mask() == 0;
  }

  void write(int64_t part, int64_t oh) {
    const Runs runs = p.out_runs(part, 0);
    const int64_t at = p.offset(part, oh, s.oh, s.ow);
    unpack(y_row.data(), y + at, runs);
    if (lse != nullptr) {
      unpack(total_row.data(), lse + at, runs);
    }
    Vec probe(acc_t(0));  // not 0 once a value is not finite
    for (int64_t r = 0; r < runs.count; ++r) {
      for (int64_t i = 0; i < runs.length; i += Vec::size()) {
        const int64_t n = std::min<int64_t>(Vec::size(), runs.length - i);
        const Vec v = Vec::loadu(&y_row[r * runs.step + i], static_cast<int>(n));
        probe = probe + (v - v);
      }
    }
    acc_t values[Vec::size()];
    probe.store(values);
    finite = finite && std::all_of(values, values + Vec::size(), [](acc_t v) { return v == 0; });
  }
};

}  // namespace
}  // namespace d2ops
