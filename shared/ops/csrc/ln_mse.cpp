// ln_mse: the squared distance of two layer-normalised maps, from five moments an image. Schema, checks, CPU kernels.
#include "ln_mse.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

namespace d2ops {

void check_ln_mse(const Tensor& x, const Tensor& y, double eps) {
  check_same_device("ln_mse", {{"x", &x}, {"y", &y}});
  TORCH_CHECK_VALUE(x.dim() >= 2, "ln_mse: x has shape ", x.sizes(), "; expected (N, C, ...).");
  TORCH_CHECK_VALUE(y.sizes() == x.sizes(), "ln_mse: y has shape ", y.sizes(), " and x ", x.sizes(),
                    "; expected one shape, (N, C, ...).");
  check_same_dtype("ln_mse", {{"x", &x}, {"y", &y}});
  TORCH_CHECK_VALUE(eps > 0, "ln_mse: eps is ", eps, "; it must be above 0, or a constant map has no norm.");
}

void check_ln_mse_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& moments, double eps) {
  check_ln_mse(x, y, eps);
  check_same_device("ln_mse", {{"x", &x}, {"grad", &grad}, {"moments", &moments}});
  check_same_dtype("ln_mse", {{"moments", &moments}, {"grad", &grad}});
  TORCH_CHECK_TYPE(grad.scalar_type() == at::kDouble, "ln_mse: grad has dtype ", grad.scalar_type(),
                   "; expected float64, the dtype of the sums.");
  TORCH_CHECK_VALUE(grad.dim() == 1 && grad.size(0) == x.size(0), "ln_mse: grad has shape ", grad.sizes(),
                    "; expected (", x.size(0), ",).");
  TORCH_CHECK_VALUE(moments.dim() == 2 && moments.size(0) == x.size(0) && moments.size(1) == kMoments,
                    "ln_mse: moments has shape ", moments.sizes(), "; expected (", x.size(0), ", ", int(kMoments),
                    ").");
}

at::MemoryFormat ln_mse_layout(const Tensor& x, const Tensor& y) {
  using Format = at::MemoryFormat;
  for (const auto format : {Format::Contiguous, Format::ChannelsLast, Format::ChannelsLast3d}) {
    if (x.is_contiguous(format) && y.is_contiguous(format)) {
      return format;
    }
  }
  return at::MemoryFormat::Contiguous;
}

namespace {

constexpr int64_t kSteps = 256;   // elements that one lane sums in acc_t before it goes to double
constexpr int64_t kChunks = 16;   // chunks of a task
constexpr int64_t kGrain = 32768;  // elements worth a thread

template <typename acc_t>
constexpr int64_t chunk_size() {
  return kSteps * at::vec::Vectorized<acc_t>::size();
}

// A chunk in acc_t: itself, or its copy in `buffer` for the half types.
template <typename scalar_t, typename acc_t>
const acc_t* widened(const scalar_t* values, int64_t count, acc_t* buffer) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return values;
  } else {
    at::vec::convert(values, buffer, count);
    return buffer;
  }
}

// Adds a chunk's sums about (shift_x, shift_y). Each lane sums about its own first element, in acc_t: the squares are
// then of the data's spread, not of its mean.
template <typename acc_t>
void add_chunk(const acc_t* x, const acc_t* y, int64_t count, double shift_x, double shift_y, double* sums) {
  using Vec = at::vec::Vectorized<acc_t>;
  const int64_t steps = count / Vec::size();
  if (steps > 0) {
    const Vec first_x = Vec::loadu(x), first_y = Vec::loadu(y);
    Vec vec[kSums] = {Vec(0), Vec(0), Vec(0), Vec(0), Vec(0)};
    for (int64_t i = 0; i < steps * Vec::size(); i += Vec::size()) {
      const Vec dx = Vec::loadu(x + i) - first_x, dy = Vec::loadu(y + i) - first_y;
      vec[kSumX] = vec[kSumX] + dx;
      vec[kSumY] = vec[kSumY] + dy;
      vec[kSumXX] = at::vec::fmadd(dx, dx, vec[kSumXX]);
      vec[kSumYY] = at::vec::fmadd(dy, dy, vec[kSumYY]);
      vec[kSumXY] = at::vec::fmadd(dx, dy, vec[kSumXY]);
    }
    acc_t lanes[kSums][Vec::size()];
    for (int k = 0; k < kSums; k++) {
      vec[k].store(lanes[k]);
    }
    for (int64_t lane = 0; lane < Vec::size(); lane++) {
      acc_t part[kSums];
      for (int k = 0; k < kSums; k++) {
        part[k] = lanes[k][lane];
      }
      add_shifted(part, double(steps), x[lane] - shift_x, y[lane] - shift_y, sums);
    }
  }
  const double nothing[kSums] = {0, 0, 0, 0, 0};
  for (int64_t i = steps * Vec::size(); i < count; i++) {
    add_shifted(nothing, 1, x[i] - shift_x, y[i] - shift_y, sums);
  }
}

// Runs f(image, part, first element, elements) over tasks of fixed size: results do not depend on the threads.
template <typename F>
void for_each_task(int64_t images, int64_t size, int64_t task, const F& f) {
  const int64_t parts = (size + task - 1) / task;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(size, task));
  at::parallel_for(0, images * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t part = i % parts, first = part * task;
      f(i / parts, part, first, std::min(task, size - first));
    }
  });
}

template <typename scalar_t>
void forward_kernel(const Tensor& x, const Tensor& y, double eps, double* sums, double* moments) {
  using acc_t = at::opmath_type<scalar_t>;
  constexpr int64_t chunk = chunk_size<acc_t>();
  const int64_t images = x.size(0), size = x.numel() / images, parts = (size + chunk * kChunks - 1) / (chunk * kChunks);
  const scalar_t* xs = x.const_data_ptr<scalar_t>();
  const scalar_t* ys = y.const_data_ptr<scalar_t>();
  const Tensor partial = at::empty({images, parts, int64_t(kSums)}, x.options().dtype(at::kDouble));
  double* partials = partial.mutable_data_ptr<double>();
  for_each_task(images, size, chunk * kChunks, [&](int64_t image, int64_t part, int64_t first, int64_t count) {
    acc_t buffer_x[std::is_same_v<scalar_t, acc_t> ? 1 : chunk], buffer_y[std::is_same_v<scalar_t, acc_t> ? 1 : chunk];
    const scalar_t *image_x = xs + image * size, *image_y = ys + image * size;
    double total[kSums] = {0, 0, 0, 0, 0};
    for (int64_t at = first; at < first + count; at += chunk) {
      const int64_t n = std::min(chunk, first + count - at);
      add_chunk(widened(image_x + at, n, buffer_x), widened(image_y + at, n, buffer_y), n, double(image_x[0]),
                double(image_y[0]), total);
    }
    std::copy(total, total + kSums, partials + (image * parts + part) * kSums);
  });
  at::parallel_for(0, images, std::max<int64_t>(1, 1024 / parts), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; image++) {
      double total[kSums] = {0, 0, 0, 0, 0};
      for (int64_t part = 0; part < parts; part++) {
        for (int k = 0; k < kSums; k++) {
          total[k] += partials[(image * parts + part) * kSums + k];
        }
      }
      double* out = moments + image * kMoments;
      moments_of(total, double(size), double(xs[image * size]), double(ys[image * size]), out);
      sums[image] = squared_distance(out, double(size), eps);
    }
  });
}

std::tuple<Tensor, Tensor> ln_mse_cpu(const Tensor& x_in, const Tensor& y_in, double eps) {
  check_ln_mse(x_in, y_in, eps);
  const auto format = ln_mse_layout(x_in, y_in);
  const Tensor x = x_in.contiguous(format), y = y_in.contiguous(format);
  Tensor sums = at::empty({x.size(0)}, x.options().dtype(at::kDouble));
  Tensor moments = at::empty({x.size(0), int64_t(kMoments)}, sums.options());
  if (x.numel() == 0) {
    return {sums.zero_(), moments.zero_()};
  }
  double* out = sums.mutable_data_ptr<double>();
  D2OPS_DISPATCH(x.scalar_type(), "ln_mse", [&] {
    forward_kernel<scalar_t>(x, y, eps, out, moments.mutable_data_ptr<double>());
  });
  if (std::any_of(out, out + sums.numel(), [](double value) { return !std::isfinite(value); })) {
    raise_if_not_finite("ln_mse", {{"x", &x}, {"y", &y}});
  }
  return {sums, moments};
}

// out = line(p, q) over a chunk.
template <typename scalar_t, typename acc_t>
void write_line(const acc_t* p, const acc_t* q, int64_t count, const Line<acc_t>& line, acc_t* buffer, scalar_t* out) {
  using Vec = at::vec::Vectorized<acc_t>;
  const Vec own(line.own), other(line.other), mean_p(line.mean_p), mean_q(line.mean_q), rest(line.rest);
  const auto value = [&](Vec a, Vec b) {
    return at::vec::fmadd(own, a - mean_p, at::vec::fmadd(other, b - mean_q, rest));
  };
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    at::vec::map2<acc_t>(value, out, p, q, count);
  } else {
    at::vec::map2<acc_t>(value, buffer, p, q, count);
    at::vec::convert(buffer, out, count);
  }
}

template <typename scalar_t>
void backward_kernel(const double* grad, const Tensor& x, const Tensor& y, const double* moments, double eps,
                     scalar_t* grad_x, scalar_t* grad_y) {
  using acc_t = at::opmath_type<scalar_t>;
  constexpr int64_t chunk = chunk_size<acc_t>(), room = std::is_same_v<scalar_t, acc_t> ? 1 : chunk;
  const int64_t images = x.size(0), size = x.numel() / images;
  const scalar_t* xs = x.const_data_ptr<scalar_t>();
  const scalar_t* ys = y.const_data_ptr<scalar_t>();
  for_each_task(images, size, chunk * kChunks, [&](int64_t image, int64_t, int64_t first, int64_t count) {
    acc_t buffer_x[room], buffer_y[room], buffer_out[room];
    const auto line_x = gradient_line<acc_t>(moments + image * kMoments, true, grad[image], eps);
    const auto line_y = gradient_line<acc_t>(moments + image * kMoments, false, grad[image], eps);
    for (int64_t at = first; at < first + count; at += chunk) {
      const int64_t n = std::min(chunk, first + count - at), from = image * size + at;
      const acc_t* p = widened(xs + from, n, buffer_x);
      const acc_t* q = widened(ys + from, n, buffer_y);
      if (grad_x != nullptr) {
        write_line(p, q, n, line_x, buffer_out, grad_x + from);
      }
      if (grad_y != nullptr) {
        write_line(q, p, n, line_y, buffer_out, grad_y + from);
      }
    }
  });
}

std::tuple<Tensor, Tensor> ln_mse_backward_cpu(const Tensor& grad, const Tensor& x_in, const Tensor& y_in,
                                               const Tensor& moments, double eps, bool need_x, bool need_y) {
  check_ln_mse_backward(grad, x_in, y_in, moments, eps);
  const auto format = ln_mse_layout(x_in, y_in);
  const Tensor x = x_in.contiguous(format), y = y_in.contiguous(format);
  Tensor grad_x = need_x ? at::empty(x.sizes(), x.options(), format) : at::empty({0}, x.options());
  Tensor grad_y = need_y ? at::empty(x.sizes(), x.options(), format) : at::empty({0}, x.options());
  if (x.numel() > 0 && (need_x || need_y)) {
    const Tensor upstream = grad.contiguous(), saved = moments.contiguous();
    D2OPS_DISPATCH(x.scalar_type(), "ln_mse_backward", [&] {
      backward_kernel<scalar_t>(upstream.const_data_ptr<double>(), x, y, saved.const_data_ptr<double>(), eps,
                                need_x ? grad_x.mutable_data_ptr<scalar_t>() : nullptr,
                                need_y ? grad_y.mutable_data_ptr<scalar_t>() : nullptr);
    });
  }
  return {grad_x, grad_y};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def("ln_mse(Tensor x, Tensor y, float eps) -> (Tensor sums, Tensor moments)");
  m.def("ln_mse_backward(Tensor grad, Tensor x, Tensor y, Tensor moments, float eps, bool need_x, bool need_y)"
        " -> (Tensor grad_x, Tensor grad_y)");
}

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("ln_mse", ln_mse_cpu);
  m.impl("ln_mse_backward", ln_mse_backward_cpu);
}

}  // namespace d2ops
