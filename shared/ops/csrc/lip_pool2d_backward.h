// Backward on the CPU, a gather: each gradient is the sum over the windows of its input, and is written once. The
// weight of input i in window o is exp(l_i - lse_o), which is at most 1.
#pragma once

#include "lip_pool2d_rows.h"

#include <utility>

namespace d2ops {
namespace {

template <typename scalar_t>
struct Backward {
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;
  struct Tap {
    const acc_t *g, *y, *lse;
  };

  const Plan& p;
  const LipShape& s;
  const scalar_t *grad, *x, *logit, *y;
  const acc_t* lse;
  scalar_t *grad_x, *grad_logit;  // nullptr: not needed
  int64_t band, out_rows, out_stride, oh_first = 0;
  std::vector<acc_t> l_rows, g_rows, y_rows, lse_rows, x_row, scale_row, x_split, l_split, dx_split, dl_split, scratch;
  std::vector<Tap> taps;

  Backward(const Plan& plan, const scalar_t* grad, const scalar_t* x, const scalar_t* logit, const scalar_t* y,
           const acc_t* lse, scalar_t* grad_x, scalar_t* grad_logit)
      : p(plan), s(plan.s), grad(grad), x(x), logit(logit), y(y), lse(lse), grad_x(grad_x), grad_logit(grad_logit),
        band(std::min(plan.band_rows(1), s.h)), out_rows(std::min((band + s.kh - 2) / s.sh + 1, s.oh)),
        out_stride(p.margin + p.out_width), scale_row(p.in_width), x_split(p.in_width), l_split(p.in_width),
        dx_split(p.in_width), dl_split(p.in_width), scratch(p.in_width), taps(s.kh * s.kw) {
    clear();
  }

  // Outside the map there is no weight: logit -inf, lse +inf, gradient 0.
  void clear() {
    const acc_t inf = std::numeric_limits<acc_t>::infinity();
    l_rows.assign(band * p.in_width, -inf);
    x_row.assign(p.in_width, acc_t(0));
    g_rows.assign(out_rows * out_stride, acc_t(0));
    y_rows.assign(out_rows * out_stride, acc_t(0));
    lse_rows.assign(out_rows * out_stride, inf);
  }

  // Outputs whose windows hold padded coordinate i: first, and one past the last.
  static std::pair<int64_t, int64_t> windows(int64_t i, int64_t kernel, int64_t stride, int64_t outputs) {
    const int64_t low = i < kernel ? 0 : (i - kernel) / stride + 1;
    return {low, std::min(i / stride + 1, outputs)};
  }

  void item(int64_t part, int64_t h_begin, int64_t h_end) {
    if (p.filled(part) < p.together) {
      clear();
    }
    const Runs runs = p.in_runs(part);
    for (int64_t h = h_begin; h < h_end; ++h) {
      acc_t* row = &l_rows[(h - h_begin) * p.in_width];
      pack(logit + p.offset(part, h, s.h, s.w), row, runs);
      if (s.gate > 0) {
        apply_gate(row, runs, static_cast<acc_t>(s.gate));
      }
    }
    const acc_t top = largest(l_rows.data(), h_end - h_begin, p.in_width, p.phases * p.phase_size);
    oh_first = windows(h_begin + s.ph, s.kh, s.sh, s.oh).first;
    const bool common = read_outputs(part, windows(h_end - 1 + s.ph, s.kh, s.sh, s.oh).second, top);
    for (int64_t h = h_begin; h < h_end; ++h) {
      const int64_t at = p.offset(part, h, s.h, s.w);
      pack(x + at, x_row.data(), runs);
      const acc_t *l = &l_rows[(h - h_begin) * p.in_width], *v = x_row.data();
      split(p, scratch.data(), x_split.data(), [=](int64_t i) { return Vec::loadu(v + i); });
      if (!common) {
        split(p, scratch.data(), l_split.data(), [=](int64_t i) { return Vec::loadu(l + i); });
      }
      gather_row(h, common);
      find_scale(l, top, common);
      write(grad_x, dx_split, at, runs);
      apply_gate_slope(l);
      write(grad_logit, dl_split, at, runs);
    }
  }

  // Gradients, outputs and statistics of the windows. Returns whether one top serves all: then the gradient takes
  // exp(top - lse), and the weight exp(l - lse) is exp(l - top) times that.
  bool read_outputs(int64_t part, int64_t oh_end, acc_t top) {
    const Runs runs = p.out_runs(part, p.margin);
    Vec low(std::numeric_limits<acc_t>::infinity());
    for (int64_t oh = oh_first; oh < oh_end; ++oh) {
      const int64_t at = p.offset(part, oh, s.oh, s.ow), row = (oh - oh_first) * out_stride;
      pack(grad + at, &g_rows[row], runs);
      pack(y + at, &y_rows[row], runs);
      pack(lse + at, &lse_rows[row], runs);
      for (int64_t i = row + p.margin; i < row + out_stride; i += Vec::size()) {
        low = at::vec::minimum(low, Vec::loadu(&lse_rows[i]));
      }
    }
    if ((low >= Vec(top - static_cast<acc_t>(kReach))).zero_mask() != 0) {
      return false;
    }
    const Vec shift(top);
    for (int64_t oh = oh_first; oh < oh_end; ++oh) {
      acc_t* g = &g_rows[(oh - oh_first) * out_stride + p.margin];
      const acc_t* z = &lse_rows[(oh - oh_first) * out_stride + p.margin];
      for (int64_t i = 0; i < p.out_width; i += Vec::size()) {
        (Vec::loadu(g + i) * fast_exp<acc_t>(shift - Vec::loadu(z + i))).store(g + i);
      }
    }
    return true;
  }

  void gather_row(int64_t h, bool common) {
    const auto [oh_begin, oh_end] = windows(h + s.ph, s.kh, s.sh, s.oh);
    const int64_t blocks = s.channels_last ? s.w + s.pw : p.phases;
    for (int64_t b = s.channels_last ? s.pw : 0; b < blocks; ++b) {
      const auto [ow_begin, ow_end] = windows(b, s.kw, s.sw, s.ow);
      const int64_t columns = s.channels_last ? ow_end - ow_begin : (s.kw - 1 - b) / s.sw + 1;
      int64_t count = 0;
      for (int64_t oh = oh_begin; oh < oh_end; ++oh) {
        for (int64_t u = 0; u < columns; ++u) {
          const int64_t at = (oh - oh_first) * out_stride + (s.channels_last ? (ow_begin + u) * p.step : p.margin - u);
          taps[count++] = {&g_rows[at], &y_rows[at], &lse_rows[at]};
        }
      }
      const int64_t start = b * (s.channels_last ? p.step : p.phase_stride);
      if (common) {
        with_constant(count, [&](auto n) { gather<true, n>(count, start); });
      } else {
        gather<false, 0>(count, start);
      }
    }
  }

  // dx_i = sum over windows of q, dl_i = sum of q (x_i - y_o), q = g_o exp(l_i - lse_o); with a common top all lack the
  // factor exp(l_i - top).
  template <bool kCommon, int kTaps>
  void gather(int64_t count, int64_t start) {
    const int64_t n = kTaps > 0 ? kTaps : count, size = s.channels_last ? p.step : p.phase_size;
    std::array<Tap, std::max(kTaps, 1)> known;
    std::copy_n(taps.begin(), kTaps, known.begin());
    const Tap* tap = kTaps > 0 ? known.data() : taps.data();
    const acc_t *xs = &x_split[start], *ls = &l_split[start];
    acc_t *to_x = &dx_split[start], *to_l = &dl_split[start];
    for (int64_t i = 0; i < size; i += Vec::size()) {
      const Vec value = Vec::loadu(xs + i);
      Vec dx(acc_t(0)), dl(acc_t(0));
      for (int64_t t = 0; t < n; ++t) {
        Vec q = Vec::loadu(tap[t].g + i);
        if constexpr (!kCommon) {
          q = q * (Vec::loadu(ls + i) - Vec::loadu(tap[t].lse + i)).exp();
        }
        dx = dx + q;
        dl = at::vec::fmadd(q, value - Vec::loadu(tap[t].y + i), dl);
      }
      dx.store(to_x + i);
      dl.store(to_l + i);
    }
  }

  void find_scale(const acc_t* l, acc_t top, bool common) {
    const Vec shift(top), one(acc_t(1));
    acc_t* scale = scale_row.data();
    for (int64_t i = 0; i < p.phases * p.phase_size; i += Vec::size()) {
      (common ? fast_exp<acc_t>(Vec::loadu(l + i) - shift) : one).store(scale + i);
    }
  }

  // d(gate * sigmoid(z)) / dz = l (1 - l / gate)
  void apply_gate_slope(const acc_t* l) {
    const Vec one(acc_t(1)), gate(static_cast<acc_t>(s.gate));
    for (int64_t i = 0; s.gate > 0 && i < p.phases * p.phase_size; i += Vec::size()) {
      const Vec logit = Vec::loadu(l + i);
      (Vec::loadu(&scale_row[i]) * logit * (one - logit / gate)).store(&scale_row[i]);
    }
  }

  void write(scalar_t* to, const std::vector<acc_t>& from, int64_t at, const Runs& runs) {
    if (to != nullptr) {
      merge(p, from.data(), scale_row.data(), scratch.data());
      unpack(scratch.data(), to + at, runs);
    }
  }
};

}  // namespace
}  // namespace d2ops
